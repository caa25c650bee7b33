"""openpi's checkpoints, of JAX and of PyTorch, are read and written here.

JAX        params/   Orbax: {"params": tree}, or with one more level `value` at every leaf, as
                     training saves it
PyTorch    model.safetensors, config.json
both       assets/<asset id>/norm_stats.json: the statistics of one robot

    {"norm_stats": {"state": {"mean": [...], "std": [...], "q01": [...] or null,
                              "q99": [...] or null},
                    "actions": {the same}}}

These know no minimum and maximum, and their vectors may be padded to the model's dimension.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.convert import orbax_arrays, safetensors_files, tree
from pi0_jax.convert.folder import Folder, is_file
from pi0_jax.convert.huggingface_names import (
    PUBLISHED_PORT_VARIANTS,
    heads,
    is_published,
    pi0_rules,
)
from pi0_jax.convert.metadata import Metadata, RobotRecord, differences, for_ports, with_beside
from pi0_jax.convert.rules import Rule, rule
from pi0_jax.convert.source import LazyArray, Source, Tensors, mapped, torch_tensors
from pi0_jax.errors import InputError
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.normalize import Statistics

JAX, PYTORCH = "openpi_jax", "openpi_pytorch"
_NAMES = ("params/{path}/value", "params/{path}", "{path}/value", "{path}")
JAX_RULES = [rule(name, "{path}") for name in _NAMES]
TORCH_RULES: list[Rule] = pi0_rules("")
FIRST_NAME = "paligemma_with_expert."
CONFIG = "config.json"


# ---- in


def recognise_jax(folder: Folder) -> bool:
    """Returns whether a folder is a checkpoint of openpi's JAX code, or its params."""
    return orbax_arrays.METADATA in folder or ("params" in folder and "description" not in folder)


def arrays(folder: Folder) -> dict[str, LazyArray]:
    """Opens the arrays of such a folder."""
    bare = orbax_arrays.METADATA in folder
    return orbax_arrays.read_arrays(folder if bare else folder.folder("params"))


def read_jax(folder: Folder, tensors: Tensors) -> Source:
    """Opens a checkpoint of openpi's JAX code, and reads no array yet."""
    metadata = with_beside(Metadata(robots=_robots(folder)), folder)
    return mapped(tensors, JAX_RULES, format=JAX, path=str(folder), given={}, metadata=metadata)


def read_torch(folder: Folder | None, path: str, tensors: Tensors, sizes: tree.Sizes) -> Source:
    """Opens a checkpoint of openpi's PyTorch code, and reads no array yet.

    Args:
        folder: the folder; None for a safetensors file alone.
        path: names the checkpoint in messages.
        tensors: the arrays.
        sizes: those that the user gives, because no tensor shows them.
    """
    metadata, config = Metadata(), {}
    if folder is not None:
        config = folder.read_json(CONFIG)
        own = Metadata(robots=_robots(folder), horizon=config.get("action_horizon"))
        metadata = with_beside(own, folder)
    given = heads(tensors, metadata.sizes, sizes)
    source = mapped(tensors, TORCH_RULES, format=PYTORCH, path=path, given=given, metadata=metadata)
    if "action_dim" in config and config["action_dim"] != source.sizes["A"]:
        raise InputError(
            f"{path}: {CONFIG}: action_dim is {config['action_dim']}, {source.sizes['A']} by the tensors"
        )
    return source


def _robots(folder: Folder) -> dict[str, RobotRecord]:
    """Reads the statistics of all robots."""
    if "assets" not in folder:
        return {}
    return {
        name: RobotRecord(
            read_statistics(asset.read_json("norm_stats.json"), f"{asset}/norm_stats.json"), None
        )
        for name, asset in _assets(folder.folder("assets"), "")
    }


def _assets(folder: Folder, prefix: str) -> Iterator[tuple[str, Folder]]:
    """Yields asset ids, which may have slashes in them, and their folders."""
    for name in sorted(folder.names):
        if is_file(folder.file(name)):
            continue
        asset = folder.folder(name)
        if "norm_stats.json" in asset:
            yield prefix + name, asset
        else:
            yield from _assets(asset, f"{prefix}{name}/")


def read_statistics(record: Mapping[str, Any], source: str) -> Statistics:
    """Reads the content of a norm_stats.json, with its padding.

    Raises:
        InputError: it has another format.
    """
    parts = record.get("norm_stats")
    if not isinstance(parts, dict):
        found = ", ".join(record) or "nothing"
        raise InputError(
            f"{source}: expected an object norm_stats with state and actions, found {found}"
        )
    absent = dict.fromkeys(normalize.FIELDS)
    complete = {
        part: absent | vector if isinstance(vector, dict) else vector
        for part, vector in parts.items()
    }
    return normalize.from_json(complete, source)


# ---- LoRA


def lora_names(tensors: Tensors) -> list[str]:
    """Returns the names of the tensors that are LoRA leaves."""
    return sorted(name for name in tensors if "lora_" in name.lower())


def merged(tensors: Tensors, scale: float, source: str) -> dict[str, LazyArray]:
    """Returns the tensors without LoRA leaves; these are merged when a weight is read.

    The merged weight is w + alpha / rank * a b, where a b is a product over the last two axes.

        attn/q_einsum/w   attn/q_einsum/lora_a   attn/q_einsum/lora_b
        mlp/linear        mlp/linear_lora_a      mlp/linear_lora_b

    Raises:
        InputError: a LoRA leaf adapts nothing, has no partner, or has another shape.
    """
    result, left = dict(tensors), lora_names(tensors)
    for name in [name for name in left if "lora_a" in name]:
        end = "/value" if name.endswith("/value") else ""
        stem = name.removesuffix(end).removesuffix("lora_a")
        base = (f"{stem}w" if stem.endswith("/") else stem.removesuffix("_")) + end
        partner = f"{stem}lora_b{end}"
        if base not in tensors or partner not in tensors:
            continue
        w, a, b = tensors[base], tensors[name], tensors[partner]
        if (*a.shape[:-1], b.shape[-1]) == w.shape and b.shape[:-1] == (*w.shape[:-2], a.shape[-1]):
            result[base] = _with_product(w, a, b, scale)
            left = [other for other in left if other not in (name, partner)]
    if left:
        raise InputError(f"{source}: {', '.join(left[:3])}: LoRA leaves that fit no weight of π0")
    return {name: tensor for name, tensor in result.items() if name not in lora_names(tensors)}


def _with_product(w: LazyArray, a: LazyArray, b: LazyArray, scale: float) -> LazyArray:
    """Returns w + scale * a b in the dtype of w, computed in float32."""

    def read(entry: int | None) -> np.ndarray:
        base, first, second = (array.read(entry).astype(np.float32) for array in (w, a, b))
        return (base + np.float32(scale) * (first @ second)).astype(w.dtype)

    return dataclasses.replace(w, read=read)


# ---- out


def write_jax(source: Source, folder: Path) -> list[str]:
    """Writes params and the robots' statistics; returns notes for the user."""
    orbax_arrays.write_leaves(source, folder / "params", prefix="params/")
    return _write_robots(source, folder)


def write_torch(source: Source, folder: Path) -> list[str]:
    """Writes the tensors, config.json and the robots' statistics; returns notes for the user."""
    tensors = dict(torch_tensors(source, TORCH_RULES))
    safetensors_files.write_file(folder / safetensors_files.SINGLE, tensors)
    backbone, expert = PUBLISHED_PORT_VARIANTS
    config = {
        "action_dim": source.sizes["A"], "action_horizon": source.metadata.horizon, "paligemma_variant": backbone,
        "action_expert_variant": expert, "precision": safetensors_files.one_dtype(tensors),
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2))
    notes = _write_robots(source, folder)
    if is_published(source.sizes):
        return notes
    return [f"warning: {CONFIG} can only name {backbone} and {expert}, of other sizes", *notes]


def _write_robots(source: Source, folder: Path) -> list[str]:
    """Writes the robots' statistics; returns warnings of what openpi will do otherwise."""
    for name, robot in source.metadata.robots.items():
        written, _ = for_ports(robot, source.metadata.mode)
        write_statistics(statistics_file(folder, name), written)
    notes = differences(source.metadata, "openpi")
    by = {"zscore": "mean and standard deviation", "quantile": "percentiles"}
    mode, model = ("quantile", "π0.5") if tree.is_pi05(source.sizes) else ("zscore", "π0")
    if source.metadata.mode != mode:
        found = by[source.metadata.mode]
        notes.append(f"warning: normalised by {found}; openpi's {model} takes {by[mode]}")
    return notes


def statistics_file(checkpoint: Path, asset_id: str) -> Path:
    """Returns where a checkpoint has a robot's statistics."""
    return checkpoint / "assets" / asset_id / "norm_stats.json"


def write_statistics(file: Path, statistics: Statistics) -> None:
    """Writes a norm_stats.json, whole or not at all, and its folder; nothing is padded."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = {
        part: {key: vector[key] for key in ("mean", "std", "q01", "q99")}
        for part, vector in normalize.to_json(statistics).items()
    }
    normalize.write_json(file, {"norm_stats": parts})
