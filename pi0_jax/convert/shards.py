"""Safetensors files make one model: a single file, or shards, with or without an index."""

import re
from collections.abc import Mapping

from pi0_jax.convert.folder import Folder
from pi0_jax.convert.safetensors_file import SafetensorsFiles
from pi0_jax.convert.source import Leaf
from pi0_jax.errors import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


def present(folder: Folder) -> bool:
    """Returns whether a folder holds such files."""
    return (
        SINGLE in folder or INDEX in folder or any(_SHARD.fullmatch(name) for name in folder.names)
    )


def read(folder: Folder) -> SafetensorsFiles:
    """Opens the files of a folder as one model.

    Raises:
        InputError: a shard is missing, or lacks a tensor that the index names; or SafetensorsFiles
            raises it.
    """
    names = _names(folder)
    missing = [name for name in names if name not in folder]
    if missing:
        raise InputError(f"{folder}: {', '.join(missing[:3])}: a shard is missing")
    tensors = SafetensorsFiles([folder.file(name) for name in names])
    if INDEX in folder:
        absent = [name for name in _weight_map(folder) if name not in tensors.infos]
        if absent:
            raise InputError(
                f"{folder.file(INDEX)}: {', '.join(absent[:3])}: named here, in no shard"
            )
    return tensors


def _names(folder: Folder) -> list[str]:
    """Returns the names of the files that make the model."""
    shards = [found for name in folder.names if (found := _SHARD.fullmatch(name))]
    if SINGLE in folder and (shards or INDEX in folder):
        raise InputError(f"{folder}: expected {SINGLE} or shards, found both")
    if SINGLE in folder:
        return [SINGLE]
    if INDEX in folder:
        return sorted(set(_weight_map(folder).values()))
    counts = {found[2] for found in shards}
    if len(counts) > 1:
        raise InputError(
            f"{folder}: expected shards of one model, found some of {' and some of '.join(sorted(counts))}"
        )
    (count,) = counts
    return [
        f"model-{number:0{len(found[1])}d}-of-{count}.safetensors"
        for found in shards[:1]
        for number in range(1, int(count) + 1)
    ]


def _weight_map(folder: Folder) -> Mapping[str, str]:
    """Returns the index: tensor -> file."""
    record = folder.read_json(INDEX)
    if "weight_map" not in record or not isinstance(record["weight_map"], dict):
        raise InputError(f"{folder.file(INDEX)}: expected a weight_map, found {', '.join(record)}")
    return record["weight_map"]


def one_dtype(leaves: Mapping[str, Leaf]) -> str:
    """Returns what a config.json calls the dtype of these tensors; mixed ones run in the wider."""
    return (
        "bfloat16" if {leaf.dtype.name for leaf in leaves.values()} == {"bfloat16"} else "float32"
    )
