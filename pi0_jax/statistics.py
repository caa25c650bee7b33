"""Statistics of an index for a horizon: over its training frames, states as they are, actions as the loss sees them.

Every frame counts with its whole chunk: deltas taken, the steps past the episode's end included. Computed once and kept beside the index:

    <index>/statistics-<horizon>-<digest>.json     the digest is of how the embodiment's actions are read

Columns are read in blocks, so that memory does not grow with the dataset.
"""

import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax import normalize
from pi0_jax.data.index import Index
from pi0_jax.errors import FULL_DISK, InputError
from pi0_jax.normalize import Counted, Mode, Statistics, VectorStatistics
from pi0_jax.preprocess import Robot, to_delta
from pi0_jax.progress import progress_bar

_FORMAT = (
    2  # raised when the same columns give other statistics, or a file holds them in another way
)
_BLOCK = 1 << 20  # about 200 MB for eight dimensions
_BAR_AFTER_S = 2.0
_SPIKE = 100.0  # times the range of 98% of the values


def index_statistics(index: Index, horizon: int, *, progress: bool = True) -> Statistics:
    """Those of the index's training frames with chunks of `horizon` steps: read from its folder, or computed and kept there.

    Where the folder may not be written to, or the disk is full, they are only computed.

    Raises InputError: no training frames; a damaged file of statistics.
    """
    file = index.path / f"statistics-{horizon}-{_digest(index)}.json"
    try:
        return _load(file, index)
    except FileNotFoundError:
        pass
    statistics = compute(index, horizon, progress=progress)
    try:
        normalize.write_json(file, _sealed(normalize.to_json(statistics)))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, *FULL_DISK):
            raise
    return statistics


def compute(index: Index, horizon: int, *, progress: bool, block: int = _BLOCK) -> Statistics:
    """`index_statistics` without the file.

    Args:
        progress: shows a bar for each pass that takes longer than two seconds.
        block: values of each dimension that are held at a time.

    Raises InputError: no training frames.
    """
    frames = index.frames("train")
    if not len(frames):
        raise InputError(
            f"dataset {index.name}: expected training frames to take statistics of, found none"
        )
    delta = np.array([dim.delta for dim in index.embodiment.actions])
    bar = f"statistics {index.name}" if progress else None
    state = normalize.accumulate(_Blocks(frames, block, lambda some: index.state[some], bar))
    table = np.empty((len(VectorStatistics._fields), len(delta)))
    for dims, read in ((delta, _deltas), (~delta, _counted)):
        if dims.any():
            chunks = _Blocks(
                frames, max(1, block // horizon), partial(read, index, horizon, dims), bar
            )
            table[:, dims] = normalize.accumulate(chunks)
    return Statistics(state, VectorStatistics(*table))


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """What `read` gives for `size` frames after `size` frames; may be run through any number of times."""

    frames: np.ndarray  # int64[n], ascending
    size: int
    read: Callable[[np.ndarray], np.ndarray | Counted]
    bar: str | None

    def __iter__(self) -> Iterator[np.ndarray | Counted]:
        starts = range(0, len(self.frames), self.size)
        for start in progress_bar(starts, self.bar, delay=_BAR_AFTER_S, disable=self.bar is None):
            yield self.read(self.frames[start : start + self.size])


def _deltas(index: Index, horizon: int, dims: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """float32[n * H, d]: the chunks' actions minus the state before the chunk. Raises InputError where float32 does not hold one."""
    chunks, _ = index.chunks(frames, horizon)
    deltas = to_delta(chunks, index.state[frames], index.embodiment)[..., dims]
    if not np.isfinite(deltas).all():
        i, _, dim = np.argwhere(~np.isfinite(deltas))[0]
        where = f"dataset {index.name}: episode {index.episode_of(frames[i])} of its index, step {index.step_of(frames[i])}"
        name = [dim.name for dim in index.embodiment.actions if dim.delta][dim]
        raise InputError(
            f"{where}: action {name} minus the state: expected a float32, found a larger number"
        )
    return deltas.reshape(-1, np.count_nonzero(dims))


def _counted(index: Index, horizon: int, dims: np.ndarray, frames: np.ndarray) -> Counted:
    """The chunks' actions in dimensions that are no deltas: each once, with how often it occurs in the chunks.

    episode          a0 a1 a2 a3 |           H = 3, of frames 0, 2 and 3
    chunk of 0       a0 a1 a2
    chunk of 2             a2 a3 a3
    chunk of 3                a3 a3 a3
    within            1  1  2  2             how often each occurs before the end
    past              0  0  0  3             and past it; there, relative dimensions have one more value, 0, in its place
    """
    episodes = index.episode_of(frames)
    # of each chunk; ascends
    end = np.minimum(
        frames + horizon, index.episodes["start"][episodes] + index.episodes["stop"][episodes]
    )
    begin = np.maximum(frames, np.append(0, end[:-1]))  # steps from here on are in no chunk before
    new = end - begin
    # begin .. end - 1 of each chunk, one after the other
    steps = np.repeat(end - np.cumsum(new), new) + np.arange(new.sum())
    within = np.searchsorted(frames, steps, side="right") - np.searchsorted(
        end, steps, side="right"
    )
    past = np.bincount(
        np.searchsorted(steps, end - 1), weights=frames + horizon - end, minlength=len(steps)
    ).astype(np.int64)
    relative = np.array([dim.kind == "relative" for dim in index.embodiment.actions])[dims]
    counts = np.where(relative, within[:, None], (within + past)[:, None])
    actions = index.chunks(steps, 1)[0][:, 0, dims]  # in robot units
    one_over = frames[frames + horizon > end][:1]
    # float32[0 or 1, d]: what relative dimensions have past the end
    beyond = index.chunks(one_over, horizon)[0][:, -1, dims]
    return Counted(
        np.append(actions, beyond, axis=0),
        np.append(counts, np.broadcast_to(past.sum() * relative, beyond.shape), axis=0),
    )


def remarkable_dimensions(name: str, robot: Robot, mode: Mode) -> list[str]:
    """One line for each dimension that hardly varies (see normalize.constant), with the dataset's name, its value and unit.

    In zscore mode also one for each whose standard deviation is that of a few far values, so that the others are scaled to almost nothing;
    and one for each that has a value a hundred times its usual range away.
    """
    lines = []
    for part, dims in (("state", robot.embodiment.state), ("actions", robot.embodiment.actions)):
        vector: VectorStatistics = robot.statistics._asdict()[part]
        still, narrow = normalize.constant(vector, mode), normalize.constant(vector, "quantile")
        far = normalize.reach(vector) > normalize.FAR
        usual = vector.q99 - vector.q01
        beyond = np.maximum(vector.maximum - vector.q99, vector.q01 - vector.minimum)
        for i, dim in enumerate(dims):
            unit = "" if dim.unit == "1" else f" {dim.unit}"
            value = f"mean {vector.mean[i]:g}{unit}, standard deviation {vector.std[i]:.1g}"
            if still[i]:
                middle = (
                    f", 98% within {vector.q01[i]:g} to {vector.q99[i]:g}"
                    if mode == "quantile"
                    else ""
                )
                lines.append(
                    f"{name}: {part} {dim.name} hardly varies ({value}{middle}); it is centred, not scaled"
                )
            elif narrow[i] and far[i]:
                ends = f"98% within {vector.q01[i]:g} to {vector.q99[i]:g}, all within {vector.minimum[i]:g} to {vector.maximum[i]:g}"
                lines.append(
                    f"{name}: {part} {dim.name} varies by a few far values ({value}; {ends}): in model units the others hardly do"
                )
            elif not narrow[i] and beyond[i] > _SPIKE * usual[i]:
                lines.append(
                    f"{name}: {part} {dim.name} lies within {vector.q01[i]:g} to {vector.q99[i]:g}{unit} in 98% and reaches from"
                    f" {vector.minimum[i]:g} to {vector.maximum[i]:g}{unit}"
                )
    return lines


def _digest(index: Index) -> str:
    """Names what decides the statistics beside the horizon and what an index's folder is named by."""
    actions = [[dim.kind, dim.delta, dim.one_means == "closed"] for dim in index.embodiment.actions]
    return hashlib.sha256(json.dumps([_FORMAT, actions]).encode()).hexdigest()[:16]


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The statistics with a hash of them: one changed digit would be a statistic as well."""
    text = json.dumps(record, sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "statistics": record}


def _load(file: Path, index: Index) -> Statistics:
    try:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: expected statistics as JSON, found: {error}") from error
        if not isinstance(found, dict) or found != _sealed(found.get("statistics", {})):
            raise InputError(f"{file}: expected statistics with their checksum, found others")
        statistics = normalize.from_json(found["statistics"], str(file))
        expected, found = (
            (len(index.embodiment.state), len(index.embodiment.actions)),
            tuple(len(vector.mean) for vector in statistics),
        )
        if expected != found:
            raise InputError(
                f"{file}: expected {expected} dimensions of state and actions, found {found}"
            )
    except InputError as error:
        raise InputError(
            f"{error}; delete the file, and its statistics are computed again"
        ) from error
    return statistics
