"""Makes indices of any number of frames from a small real one, in seconds.

They serve to measure what should not depend on size.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import (
    EPISODE_COLUMNS,
    SPLITS,
    ColumnWriter,
    column_path,
    step_columns,
)
from pi0_jax.data.index.version import INDEX_FILE, SEALED

_FRAMES_AT_ONCE = 1 << 20


def synthetic_index(
    template: Index, directory: Path, path: Path, frames: int, *, sparse: bool
) -> Index:
    """Makes an index that repeats the episodes of a template, and returns it.

    Its images are the template's, read from the same shard files.

    Args:
        template: an index of the dataset in `directory`.
        directory: the dataset's folder.
        path: where the new index is written.
        frames: the least number of frames.
        sparse: the columns of the steps hold zeros that take no place on the disk. Then 100 million
            frames are ready in two seconds, but have no images and one prompt.
    """
    path.mkdir(parents=True)
    copies = -(-frames // template.steps)
    for name, (dtype, shape) in step_columns(template.row).items():
        _repeat(template, path, name, dtype, shape, copies, sparse=sparse)
    for name, dtype in EPISODE_COLUMNS.items():
        column = np.tile(template.episodes[name], copies)
        if name == "start":
            column += np.repeat(np.arange(copies) * template.steps, len(template.episodes[name]))
        _write(path, f"episode_{name}", dtype, (), [column])
    for split in SPLITS:
        kept = template.frames(split)
        at_once = max(1, _FRAMES_AT_ONCE // max(1, len(kept)))
        blocks = (
            np.arange(first, min(first + at_once, copies)) for first in range(0, copies, at_once)
        )
        _write(
            path,
            f"frames_{split}",
            "int64",
            (),
            ((block[:, None] * template.steps + kept).ravel() for block in blocks),
        )
    for name in ("prompt_text", "prompt_end"):
        column_path(path, name).write_bytes(column_path(template.path, name).read_bytes())
    record = json.loads((template.path / INDEX_FILE).read_text())
    # There are no checksums: to read so many bytes would take most of the time.
    for name in ("sha256", *SEALED):
        record.pop(name, None)
    record |= {
        "steps": copies * template.steps,
        "episodes": copies * len(template.episodes["start"]),
    }
    (path / INDEX_FILE).write_text(json.dumps(record))
    return Index(template.row, directory, path)


def _repeat(
    template: Index,
    path: Path,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    copies: int,
    *,
    sparse: bool,
) -> None:
    if sparse:
        np.lib.format.open_memmap(
            column_path(path, name), "w+", dtype, (copies * template.steps, *shape)
        )
        return
    column = np.load(column_path(template.path, name), mmap_mode="r")
    at_once = max(1, _FRAMES_AT_ONCE // template.steps)
    blocks = (min(at_once, copies - first) for first in range(0, copies, at_once))
    _write(
        path,
        name,
        dtype,
        shape,
        (np.tile(column, (block, *(1 for _ in shape))) for block in blocks),
    )


def _write(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray]
) -> None:
    writer = ColumnWriter(column_path(path, name), dtype, shape)
    for block in blocks:
        writer.append(block)
    writer.close()
