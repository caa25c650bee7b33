"""openpi's checkpoints, of JAX and of PyTorch, are read and written here.

JAX        params/   Orbax: {"params": tree}, or with one more level `value` at every leaf, as
                     training saves it
PyTorch    model.safetensors, config.json
both       assets/<asset id>/norm_stats.json: the statistics of one robot
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pi0_jax.convert import norm_stats, orbax_arrays, safetensors_file, shards, tree
from pi0_jax.convert.folder import Folder, is_file, optional
from pi0_jax.convert.huggingface_names import (
    PUBLISHED_PORT_VARIANTS,
    heads,
    is_published,
    pi0_rules,
)
from pi0_jax.convert.metadata import Metadata, RobotRecord, differences, with_beside
from pi0_jax.convert.orbax_arrays import OrbaxArrays
from pi0_jax.convert.rules import Rule, rule
from pi0_jax.convert.safetensors_file import SafetensorsFiles
from pi0_jax.convert.source import Source, Tensors, mapped
from pi0_jax.convert.torch_writer import torch_tensors
from pi0_jax.errors import InputError

JAX, PYTORCH = "openpi_jax", "openpi_pytorch"
JAX_RULES = [
    rule(name, "{path}")
    for name in ("params/{path}/value", "params/{path}", "{path}/value", "{path}")
]
TORCH_RULES: list[Rule] = pi0_rules("")
FIRST_NAME = "paligemma_with_expert."
CONFIG = "config.json"


def recognise_jax(folder: Folder) -> bool:
    """Returns whether a folder is a checkpoint of openpi's JAX code, or its params."""
    return orbax_arrays.METADATA in folder or ("params" in folder and "description" not in folder)


def arrays(folder: Folder) -> OrbaxArrays:
    """Opens the arrays of such a folder."""
    return OrbaxArrays(folder if orbax_arrays.METADATA in folder else folder.folder("params"))


def read_jax(folder: Folder, tensors: Tensors) -> Source:
    """Opens a checkpoint of openpi's JAX code, and reads no array yet."""
    metadata = with_beside(Metadata(robots=_robots(folder)), folder)
    return mapped(tensors, JAX_RULES, format=JAX, path=str(folder), given={}, metadata=metadata)


def read_torch(
    folder: Folder | None, path: str, tensors: SafetensorsFiles, sizes: tree.Sizes
) -> Source:
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
        own = Metadata(robots=_robots(folder), horizon=optional(config, "action_horizon"))
        metadata = with_beside(own, folder)
    given = heads(tensors.infos, metadata.sizes, sizes)
    source = mapped(tensors, TORCH_RULES, format=PYTORCH, path=path, given=given, metadata=metadata)
    if "action_dim" in config and config["action_dim"] != source.sizes["A"]:
        raise InputError(
            f"{path}: {CONFIG}: action_dim is {config['action_dim']}, {source.sizes['A']} by the tensors"
        )
    return source


def write_jax(source: Source, folder: Path) -> list[str]:
    """Writes params and the robots' statistics; returns notes for the user."""
    orbax_arrays.write_leaves(source, folder / "params", prefix="params/")
    _write_assets(source.metadata.robots, folder)
    return _notes(source)


def write_torch(source: Source, folder: Path) -> list[str]:
    """Writes the tensors, config.json and the robots' statistics; returns notes for the user."""
    leaves, arrays = torch_tensors(source, TORCH_RULES)
    safetensors_file.write(folder / shards.SINGLE, leaves, arrays)
    _write_assets(source.metadata.robots, folder)
    (folder / CONFIG).write_text(json.dumps(_config(source, shards.one_dtype(leaves)), indent=2))
    sizes = (
        []
        if is_published(source.sizes)
        else [
            f"warning: {CONFIG} can only name {' and '.join(PUBLISHED_PORT_VARIANTS)}, of other sizes"
        ]
    )
    return [*sizes, *_notes(source)]


def _notes(source: Source) -> list[str]:
    """Returns warnings about what the policy did and openpi will not do."""
    notes = differences(source.metadata, "openpi")
    if source.metadata.normalization == "quantile":
        notes.append(
            "warning: normalised by percentiles; openpi's π0 takes mean and standard deviation"
        )
    return notes


def _config(source: Source, dtype: str) -> dict[str, Any]:
    """Returns the content of config.json."""
    backbone, expert = PUBLISHED_PORT_VARIANTS
    return {
        "action_dim": source.sizes["A"], "action_horizon": source.metadata.horizon,
        "paligemma_variant": backbone, "action_expert_variant": expert, "precision": dtype,
    }  # fmt: skip


def _robots(folder: Folder) -> dict[str, RobotRecord]:
    """Reads the statistics of all robots."""
    if "assets" not in folder:
        return {}
    return {
        name: RobotRecord(
            norm_stats.from_record(asset.read_json("norm_stats.json"), f"{asset}/norm_stats.json"),
            None,
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


def _write_assets(robots: Mapping[str, RobotRecord], folder: Path) -> None:
    """Writes the statistics of all robots."""
    for name, robot in robots.items():
        norm_stats.save(norm_stats.norm_stats_file(folder, name), robot.statistics)
