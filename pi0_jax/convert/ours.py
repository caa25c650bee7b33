"""Our own checkpoint directory (checkpoints.py) is read and written here.

It is a run's, or what a conversion wrote. What a run froze comes out with the rest; what it adapted
by LoRA comes out merged.

What a conversion writes has one set of weights, in the place of the moving average. It serves a
policy, or to start training from. It has no optimizer.
"""

import dataclasses
from pathlib import Path

import orbax.checkpoint as ocp
from etils import epath

from pi0_jax import checkpoints
from pi0_jax.checkpoints import Description, manifest
from pi0_jax.convert import norm_stats
from pi0_jax.convert.folder import Folder
from pi0_jax.convert.metadata import Metadata, RobotRecord
from pi0_jax.convert.orbax_arrays import OrbaxArrays, write_leaves
from pi0_jax.convert.rules import rule
from pi0_jax.convert.run_weights import Completed
from pi0_jax.convert.source import Source, Tensors, mapped
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS, Pi0Config
from pi0_jax.models.trainable import Trainable
from pi0_jax.policy_config import PolicyConfig, Variant, layout, trainable_part
from pi0_jax.preprocess import Robot, check_robot, used_slots
from pi0_jax.preprocess.record_fit import doubtful_dimensions
from pi0_jax.preprocess.tokenizer import Tokenizer

NAME = "ours"
RULES = [rule("{path}", "{path}")]
WEIGHTS = ("ema", "params")  # a policy runs the first of them


def recognise(folder: Folder) -> bool:
    """Returns whether a folder is a run of ours, or one of its steps, damaged or not."""
    if checkpoints.FOLDER in folder or checkpoints.is_ours(folder.names):
        return True
    return any(
        name.isdigit() and checkpoints.is_ours(folder.folder(name).names) for name in folder.names
    )


def read(folder: Folder, weights: str) -> Source:
    """Opens the latest step, or the one that the path names, and reads no array yet.

    Args:
        folder: a run's folder or a step's.
        weights: "ema" or "params".
    """
    place = checkpoints.find(folder.url)
    step = Folder(str(place))
    if weights not in step:
        raise InputError(f"{step}: expected {weights}, found {', '.join(sorted(step.names))}")
    metadata, policy = read_metadata(place)
    trainable = trainable_part(policy)
    completed = ("params", "lora") if trainable.frozen or trainable.lora else ()
    checkpoints.check_whole(place, weights, *completed)
    arrays = _weights(step, weights, trainable)
    return mapped(arrays, RULES, format=NAME, path=f"{step}/{weights}", given={}, metadata=metadata)


def _weights(step: Folder, weights: str, trainable: Trainable) -> Tensors:
    """Returns the arrays of the published tree.

    What the moving average lacks is taken from the parameters.
    """
    arrays = OrbaxArrays(step.folder(weights))
    if not (trainable.frozen or trainable.lora):
        return arrays
    if weights == "ema":
        return Completed(arrays, OrbaxArrays(step.folder("params")), arrays, trainable)
    return Completed(
        arrays, arrays, OrbaxArrays(step.folder("lora")) if trainable.lora else arrays, trainable
    )


def read_metadata(step: epath.Path) -> tuple[Metadata, PolicyConfig]:
    """Reads what a step says of itself, and its policy's config."""
    found = checkpoints.read_description(step)
    policy, robots = found.policy, found.robots
    metadata = Metadata(
        robots={name: RobotRecord(robot.statistics, robot.embodiment) for name, robot in robots.items()},
        horizon=policy.horizon, max_tokens=policy.max_tokens, normalization=policy.normalization, tokenizer=found.tokenizer.model,
        policy=policy, training=found.training, position=found.position,
    )  # fmt: skip
    return metadata, policy


def write(source: Source, folder: Path) -> list[str]:
    """Writes checkpoints/<step>/ema and description; returns notes for the user.

    Raises:
        InputError: the source has no robot, or lacks what a policy needs.
    """
    description = describe(source)
    step = folder / checkpoints.FOLDER / str(description.position)
    step.mkdir(parents=True)
    write_leaves(source, step / WEIGHTS[0], prefix="")
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(step / "description", args=ocp.args.JsonSave(description.to_json()))
    manifest.write(epath.Path(step))
    return [
        *(
            f"warning: {line}"
            for robot in description.robots.values()
            for line in doubtful_dimensions(robot.embodiment, robot.statistics)
        ),
        "one set of weights, in the place of the moving average, without an optimizer: for a policy, or to start training from",
    ]


def describe(source: Source) -> Description:
    """Returns the description of a checkpoint with these weights.

    Raises:
        InputError: the source has no robot, no tokenizer, or lacks a robot's embodiment; or they do
            not fit to the model.
    """
    metadata, where = source.metadata, source.path
    if not metadata.robots:
        raise InputError(
            f"{where}: expected a robot's statistics, found none, so no policy; --to=openpi_jax can hold weights alone"
        )
    if metadata.tokenizer is None:
        raise InputError(
            f"{where}: carries no tokenizer; name its SentencePiece model with --tokenizer=PATH"
        )
    model = source.model_config()
    policy = _policy(metadata, model)
    robots = {name: _robot(name, record, where) for name, record in metadata.robots.items()}
    for robot in robots.values():
        check_robot(robot, layout(policy, used_slots([robot.embodiment])))
    tokenizer = Tokenizer(metadata.tokenizer, f"{where}: tokenizer")
    # A piece beyond the embedding would be read as another piece, and nobody would notice.
    if tokenizer.vocab_size > model.gemma.vocab_size:
        raise InputError(
            f"{where}: expected a tokenizer of at most {model.gemma.vocab_size} pieces, found {tokenizer.vocab_size}"
        )
    return Description(policy, metadata.training, robots, tokenizer, metadata.position, digests={})


def _robot(name: str, record: RobotRecord, where: str) -> Robot:
    """Returns a robot with the statistics of its own dimensions."""
    if record.embodiment is None:
        raise InputError(
            f"{where}: robot {name}: expected its embodiment, found none; name a record with --embodiment"
        )
    dims = len(record.embodiment.state), len(record.embodiment.actions)
    return Robot(
        record.embodiment, norm_stats.without_padding(record.statistics, *dims, f"{where}: {name}")
    )


def _policy(metadata: Metadata, model: Pi0Config) -> PolicyConfig:
    """Returns the config of the policy.

    Where none is known it has the defaults, which are the published settings.
    """
    known = metadata.policy or PolicyConfig(normalization=metadata.mode)
    return dataclasses.replace(
        known,
        variant=variant(model),
        action_dim=model.action_dim,
        horizon=model.horizon,
        max_tokens=model.max_tokens,
        frozen=(),  # the weights that are written are whole and merged
        lora=(),
    )


def variant(model: Pi0Config) -> str | Variant:
    """Returns the name of a variant of these sizes, or the sizes themselves if it has no name."""
    sizes = Variant(model.vision, model.gemma)
    named = (
        name for name, known in VARIANTS.items() if Variant(known.vision, known.gemma) == sizes
    )
    return next(named, sizes)
