"""Our own checkpoint directory (checkpoints.py) is read and written here.

It is a run's, or what a conversion wrote. What a run froze comes out with the rest; what it adapted
by LoRA comes out merged.

What a conversion writes has one set of weights, in the place of the moving average. It serves a
policy, or to start training from. It has no optimizer.
"""

import dataclasses
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pi0_jax import checkpoints
from pi0_jax.checkpoints import Description, manifest
from pi0_jax.convert.folder import Folder
from pi0_jax.convert.metadata import Metadata, RobotRecord, known_embodiment
from pi0_jax.convert.orbax_arrays import read_arrays, write_leaves
from pi0_jax.convert.rules import rule
from pi0_jax.convert.source import LazyArray, Source, Tensors, mapped
from pi0_jax.errors import InputError
from pi0_jax.models import lora
from pi0_jax.models.pi0 import VARIANTS, Pi0Config
from pi0_jax.models.trainable import Trainable
from pi0_jax.policy_config import PolicyConfig, Variant, layout, trainable_part
from pi0_jax.preprocess import Robot, check_robot, used_slots
from pi0_jax.preprocess.record_fit import doubtful_dimensions
from pi0_jax.preprocess.tokenizer import Tokenizer

NAME = "ours"
RULES = [rule("{path}", "{path}")]
WEIGHTS = ("ema", "params")  # a policy runs the first of them


# ---- in


def recognise(folder: Folder) -> bool:
    """Returns whether a folder is a run of ours, or one of its steps, damaged or not."""
    if checkpoints.FOLDER in folder or checkpoints.is_ours(folder.names):
        return True
    return any(
        name.isdigit() and checkpoints.is_ours(folder.folder(name).names) for name in folder.names
    )


def read(folder: Folder, weights: str) -> Source:
    """Opens the latest step of a run's folder, or a step's; `weights` is one of WEIGHTS."""
    place = checkpoints.find(folder.url)
    step = Folder(str(place))
    if weights not in step:
        raise InputError(f"{step}: expected {weights}, found {', '.join(sorted(step.names))}")
    found = checkpoints.read_description(place)
    policy = found.policy
    metadata = Metadata(
        robots={name: RobotRecord(robot.statistics, robot.embodiment) for name, robot in found.robots.items()},
        horizon=policy.horizon, max_tokens=policy.max_tokens, normalization=policy.normalization, tokenizer=found.tokenizer.model,
        policy=policy, training=found.training, position=found.position,
    )  # fmt: skip
    trainable = trainable_part(policy)
    completed = ("params", "lora") if trainable.frozen or trainable.lora else ()
    checkpoints.check_whole(place, weights, *completed)
    tensors: Tensors = read_arrays(step.folder(weights))
    if completed:
        # What the moving average lacks is taken from the parameters. It has its own factors.
        params = tensors if weights == "params" else read_arrays(step.folder("params"))
        apart = weights == "params" and trainable.lora
        factors = read_arrays(step.folder("lora")) if apart else tensors
        tensors = _completed(tensors, params, factors, trainable)
    path = f"{step}/{weights}"
    return mapped(tensors, RULES, format=NAME, path=path, given={}, metadata=metadata)


def _completed(
    trained: Tensors, frozen: Tensors, factors: Tensors, trainable: Trainable
) -> dict[str, LazyArray]:
    """Returns the published tree of a run that trained only a part of it.

    Args:
        trained: the leaves that are trained, and perhaps others.
        frozen: the leaves that are not, and perhaps others.
        factors: LoRA's factors, named <path>/a and <path>/b, and perhaps others.
        trainable: says which leaves are trained.
    """
    rules = {
        name: rule
        for name in frozen
        if f"{name}/a" in factors and (rule := lora.find(trainable.lora, name))
    }
    leaves = {
        name: leaf
        for name, leaf in trained.items()
        if trainable.trains(name) and name.rpartition("/")[0] not in rules
    }
    for name, leaf in frozen.items():
        if not trainable.trains(name):
            adapted = name in rules
            leaves[name] = _adapted(name, leaf, factors, rules[name]) if adapted else leaf
    return leaves


def _adapted(name: str, w: LazyArray, factors: Tensors, rule: lora.LoraRule) -> LazyArray:
    """Returns a weight with the product of its factors, in float32."""

    def read(entry: int | None) -> np.ndarray:
        base, a, b = (
            array.read(entry) for array in (w, factors[f"{name}/a"], factors[f"{name}/b"])
        )
        # One entry of a stack has no layer axis.
        subscripts = lora.product(name).replace("L", "L" if entry is None else "")
        product = np.einsum(subscripts, a, b, optimize=True)
        return base.astype(np.float32) + np.float32(rule.alpha / rule.rank) * product

    return LazyArray(w.shape, np.dtype(np.float32), read)


# ---- out


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
    doubts = [
        f"warning: {line}"
        for robot in description.robots.values()
        for line in doubtful_dimensions(robot.embodiment, robot.statistics)
    ]
    return [
        *doubts,
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
    # Where no config is known it has the defaults, which are the published settings.
    policy = dataclasses.replace(
        metadata.policy or PolicyConfig(normalization=metadata.mode),
        variant=variant(model),
        action_dim=model.action_dim,
        horizon=model.horizon,
        max_tokens=model.max_tokens,
        frozen=(),  # the weights that are written are whole and merged
        lora=(),
    )
    robots = {
        name: Robot(known_embodiment(record, f"{where}: robot {name}"), record.statistics)
        for name, record in metadata.robots.items()
    }
    for robot in robots.values():
        check_robot(robot, layout(policy, used_slots([robot.embodiment])))
    tokenizer = Tokenizer(metadata.tokenizer, f"{where}: tokenizer")
    # A piece beyond the embedding would be read as another piece, and nobody would notice.
    if tokenizer.vocab_size > model.gemma.vocab_size:
        raise InputError(
            f"{where}: expected a tokenizer of at most {model.gemma.vocab_size} pieces, found {tokenizer.vocab_size}"
        )
    return Description(policy, metadata.training, robots, tokenizer, metadata.position, digests={})


def variant(model: Pi0Config) -> str | Variant:
    """Returns the name of a variant of these sizes, or the sizes themselves if it has no name."""
    sizes = Variant(model.vision, model.gemma)
    named = (
        name for name, known in VARIANTS.items() if Variant(known.vision, known.gemma) == sizes
    )
    return next(named, sizes)
