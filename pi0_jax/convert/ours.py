"""Our own checkpoint directory (checkpoints.py): a run's, or what a conversion wrote.

What a run froze comes out with the rest, what it adapted by LoRA merged.

What a conversion writes has one set of weights, in the place of the moving average: for a policy, or to start training from; no optimizer.
"""

import base64
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from pi0_jax import checkpoints, config, normalize
from pi0_jax.checkpoints import Description
from pi0_jax.convert import norm_stats, tree
from pi0_jax.convert.completed import Completed
from pi0_jax.convert.folder import Folder, expecting
from pi0_jax.convert.metadata import Metadata, RobotRecord
from pi0_jax.convert.orbax_arrays import OrbaxArrays, write_leaves
from pi0_jax.convert.rules import rule
from pi0_jax.convert.source import Source, Tensors, mapped
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.pi0 import VARIANTS, Pi0Config
from pi0_jax.preprocess import Robot, check_robot, used_slots
from pi0_jax.tokenizer import Tokenizer
from pi0_jax.trainable import Trainable

NAME = "ours"
RULES = [rule("{path}", "{path}")]
WEIGHTS = ("ema", "params")  # a policy runs the first

# A config for what was not trained here: the published settings for fine-tuning (AdamW, cosine decay), to start from. A policy reads the
# model, the normalisation and the number of Euler steps only.
_RUN = {
    "seed": 0, "data_dir": "", "index_dir": "", "own_datasets": {},
    "skip_bad_episodes": 0, "keep_empty_language": [], "cut_prompts": False, "initial_weights": "", "initial_rules": [],
    "frames_power": 0.0, "order": "uniform", "lanes": 1, "lane_megabytes": 1,
    "statistics_only": [], "normalization_clip": 0.0,
    "augment": True, "loader_threads": 2, "prefetch_batches": 8,
    "dtype": "bfloat16", "scan_layers": True, "remat": "full",
    "draws": 1, "loss_dims": "padded", "mask_past_end": False, "sampling_steps": 10,
    "frozen": [], "frozen_dtype": "float32", "lora": [],
    "batch_size": 32, "accumulate": 1, "steps": 30_000, "learning_rate": 2.5e-5, "end_learning_rate": 2.5e-6, "warmup_steps": 1000,
    "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 1e-10, "no_decay": [],
    "first_moment_dtype": "float32", "clip_norm": 1.0, "ema_decay": 0.99,
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
    "log_every": 100, "validate_every": 1000, "validation_frames": 128, "save_every": 1000,
    "keep_checkpoints": 2, "keep_every": 0, "keep_best": 0, "keep_best_metric": "validation/loss", "skip_nonfinite": 0,
}  # fmt: skip


def recognise(folder: Folder) -> bool:
    if "description" in folder or checkpoints.FOLDER in folder:
        return True
    return any(name.isdigit() and "description" in folder.folder(name) for name in folder.names)


def read(folder: Folder, weights: str) -> Source:
    """The latest step, or the one that the path names; `weights`: "ema" or "params"."""
    step = Folder(str(checkpoints.find(folder.url)))
    if weights not in step:
        raise InputError(f"{step}: expected {weights}, found {', '.join(sorted(step.names))}")
    metadata = read_metadata(step)
    arrays = _weights(step, weights, _trainable(metadata.run, str(step)))
    return mapped(arrays, RULES, format=NAME, path=f"{step}/{weights}", given={}, metadata=metadata)


def _trainable(run: Mapping[str, Any], where: str) -> Trainable:
    with expecting("the config of a run", where):
        return Trainable(
            tuple(run["frozen"]),
            run["frozen_dtype"],
            tuple(LoraRule(**rule) for rule in run["lora"]),
        )


def _weights(step: Folder, weights: str, trainable: Trainable) -> Tensors:
    """The published tree: of the moving average, what it lacks from the parameters."""
    arrays = OrbaxArrays(step.folder(weights))
    if not (trainable.frozen or trainable.lora):
        return arrays
    if weights == "ema":
        return Completed(arrays, OrbaxArrays(step.folder("params")), arrays, trainable)
    return Completed(
        arrays, arrays, OrbaxArrays(step.folder("lora")) if trainable.lora else arrays, trainable
    )


def read_metadata(step: Folder) -> Metadata:
    record = step.folder("description").read_json("metadata")
    with expecting("the description of a checkpoint", str(step)):
        if record["format"] != checkpoints.FORMAT:
            raise InputError(
                f"{step}: expected checkpoint format {checkpoints.FORMAT}, found {record['format']}"
            )
        run = record["config"]
        robots = {
            name: RobotRecord(
                normalize.from_json(robot["statistics"], str(step)),
                Embodiment.from_json(robot["embodiment"]),
            )
            for name, robot in record["robots"].items()
        }
        return Metadata(
            robots=robots, horizon=run["horizon"], max_tokens=run["max_tokens"], normalization=run["normalization"],
            tokenizer=base64.b64decode(record["tokenizer"]), run=run, position=record["position"],
        )  # fmt: skip


def write(source: Source, folder: Path) -> list[str]:
    """Writes checkpoints/<step>/ema and description. Raises InputError where the source has no robot, or lacks what a policy needs."""
    description = describe(source)
    step = folder / checkpoints.FOLDER / str(description.position)
    step.mkdir(parents=True)
    write_leaves(source, step / WEIGHTS[0], prefix="")
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(step / "description", args=ocp.args.JsonSave(description.to_json()))
    notes = [
        "one set of weights, in the place of the moving average, without an optimizer: for a policy, or to start training from"
    ]
    if source.metadata.run is None:
        notes.append(
            "the config's training fields are the published settings for fine-tuning: no run is known"
        )
    return notes


def describe(source: Source) -> Description:
    """The description of a checkpoint with these weights."""
    metadata, where = source.metadata, source.path
    if not metadata.robots:
        raise InputError(
            f"{where}: expected a robot's statistics, found none, so no policy; --to=openpi_jax can hold weights alone"
        )
    if metadata.tokenizer is None:
        raise InputError(
            f"{where}: carries no tokenizer; name its SentencePiece model with --tokenizer=PATH"
        )
    model = tree.model_config(
        source.sizes, horizon=metadata.horizon, max_tokens=metadata.max_tokens
    )
    run = config.from_mapping(_run(metadata, model))
    robots = {name: _robot(name, record, where) for name, record in metadata.robots.items()}
    for robot in robots.values():
        check_robot(robot, config.layout(run, used_slots([robot.embodiment])))
    tokenizer = Tokenizer(metadata.tokenizer, f"{where}: tokenizer")
    if (
        tokenizer.vocab_size > model.gemma.vocab_size
    ):  # a piece beyond the embedding would be read as another, without a word
        raise InputError(
            f"{where}: expected a tokenizer of at most {model.gemma.vocab_size} pieces, found {tokenizer.vocab_size}"
        )
    return Description(run, robots, tokenizer, metadata.position, digests={})


def _robot(name: str, record: RobotRecord, where: str) -> Robot:
    if record.embodiment is None:
        raise InputError(
            f"{where}: robot {name}: expected its embodiment, found none; name a record with --embodiment"
        )
    dims = len(record.embodiment.state), len(record.embodiment.actions)
    return Robot(
        record.embodiment, norm_stats.without_padding(record.statistics, *dims, f"{where}: {name}")
    )


def _run(metadata: Metadata, model: Pi0Config) -> dict[str, Any]:
    shown = {
        "variant": variant(model),
        "action_dim": model.action_dim,
        "horizon": model.horizon,
        "max_tokens": model.max_tokens,
    }
    if metadata.run is not None:
        return {
            **metadata.run,
            **shown,
            "frozen": [],
            "lora": [],
        }  # what is written is whole and merged
    names = list(metadata.robots)
    data = {
        "datasets": names,
        "weights": [1.0] * len(names),
        "normalization": metadata.normalization,
        "tokenizer": "",
    }
    return {**_RUN, **data, **shown}


def variant(model: Pi0Config) -> str | Mapping[str, Any]:
    """The name of a variant of these sizes, or the sizes themselves where none has them."""
    shown = {
        "action_dim": model.action_dim,
        "horizon": model.horizon,
        "max_tokens": model.max_tokens,
    }
    for name, known in VARIANTS.items():
        if dataclasses.replace(known, **shown) == model:
            return name
    experts = [dataclasses.asdict(expert) for expert in model.gemma.experts]
    return {
        "vision": dataclasses.asdict(model.vision),
        "gemma": {**dataclasses.asdict(model.gemma), "experts": experts},
    }
