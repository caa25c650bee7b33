"""Computes the statistics of an index for a horizon, over its training frames.

States are taken as they are, and actions as the loss sees them. Every frame counts with its whole
chunk: deltas are taken, and the steps past the episode's end are included. The statistics are
computed once and kept beside the index:

    <index>/statistics-<horizon>-<digest>.json

The digest says how the embodiment's actions are read. Columns are read in blocks, so that memory
does not grow with the dataset.
"""

import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.embodiments.record import TURN
from pi0_jax.errors import FULL_DISK, InputError
from pi0_jax.preprocess import Robot, normalize
from pi0_jax.preprocess.deltas import in_turn, to_delta
from pi0_jax.preprocess.normalize import Counted, Mode, Statistics, VectorStatistics
from pi0_jax.progress import progress_bar

# This number is raised when the same columns give other statistics, or when a file holds them in
# another way.
_FORMAT = 2
_BLOCK = 1 << 20  # values of each dimension; about 200 MB for eight dimensions
_BAR_AFTER_S = 2.0
_SPIKE = 100.0  # times the range of 98% of the values


def index_statistics(index: Index, horizon: int, *, progress: bool = True) -> Statistics:
    """Returns the statistics of an index's training frames, with chunks of `horizon` steps.

    They are read from the index's folder, or computed and kept there. If the folder may not be
    written to, or the disk is full, they are only computed.

    Args:
        index: the dataset's index.
        horizon: steps of a chunk, H.
        progress: whether to show a bar for each pass that takes longer than two seconds.

    Raises:
        InputError: there are no training frames, or the file of statistics is damaged.
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
    """Computes what `index_statistics` returns. It reads and writes no file of it.

    `block` says how many values of each dimension are held at a time.

    Raises:
        InputError: there are no training frames, or float32 does not hold a delta.
    """
    frames = index.frames("train")
    if not len(frames):
        raise InputError(
            f"dataset {index.name}: expected training frames to take statistics of, found none"
        )
    delta = np.array([dim.delta for dim in index.embodiment.actions])
    bar = f"statistics {index.name}" if progress else None
    states = _Blocks(frames, block, lambda some: index.state[some], bar)
    state = normalize.accumulate(_about_their_middle(states, index.embodiment.state))
    # Deltas differ in every chunk. Other actions are the same in all chunks that hold them, so
    # each is read once and counted. Both fill their columns of float64[fields, A].
    table = np.empty((len(VectorStatistics._fields), len(delta)))
    for dims, read in ((delta, _deltas), (~delta, _counted)):
        if dims.any():
            chunks = _Blocks(
                frames, max(1, block // horizon), partial(read, index, horizon, dims), bar
            )
            targets = [dim for dim in index.embodiment.actions if not dim.delta]
            table[:, dims] = normalize.accumulate(
                chunks if read is _deltas else _about_their_middle(chunks, targets)
            )
    return Statistics(state, VectorStatistics(*table))


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Reads frames block by block. It may be iterated any number of times."""

    frames: np.ndarray  # int64[n], ascending
    size: int  # frames of a block
    read: Callable[[np.ndarray], np.ndarray | Counted]  # returns what a block's frames hold
    bar: str | None  # the title of the progress bar; None for no bar

    def __iter__(self) -> Iterator[np.ndarray | Counted]:
        starts = range(0, len(self.frames), self.size)
        for start in progress_bar(starts, self.bar, delay=_BAR_AFTER_S, disable=self.bar is None):
            yield self.read(self.frames[start : start + self.size])


def _about_their_middle(blocks: _Blocks, dims: Sequence[StateDim | ActionDim]) -> _Blocks:
    """Puts the angles that turn into the turn about their circular mean, far from the turn's ends.

    recorded    3.1  -3.1   3.0     mean 1.0, though all point the same way
    here        3.1   3.18  3.0     mean 3.09
    """
    periods = {i: dim.turn[1] for i, dim in enumerate(dims) if dim.turn}
    if not periods:
        return blocks
    total = np.zeros(len(dims), np.complex128)
    for block in blocks:
        for i, period in periods.items():
            values, counts = block if isinstance(block, Counted) else (block, None)
            # The direction of the sum of all angles, as unit vectors, is their circular mean.
            around = np.exp(2j * np.pi / period * values[:, i])
            total[i] += around.sum() if counts is None else around @ counts[:, i]
    middle = np.zeros(len(dims), np.float32)
    for i, period in periods.items():
        middle[i] = np.angle(total[i]) / (2 * np.pi) * period

    def near(frames: np.ndarray) -> np.ndarray | Counted:
        block = blocks.read(frames)
        if isinstance(block, Counted):
            return block._replace(values=in_turn(block.values, dims, middle))
        return in_turn(block, dims, middle)

    return dataclasses.replace(blocks, read=near)


def _deltas(index: Index, horizon: int, dims: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Returns float32[n * H, d]: the chunks' actions minus the state before the chunk.

    Raises:
        InputError: float32 does not hold a difference.
    """
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
    """Returns the chunks' actions in dimensions that are no deltas, each once with its count.

    An action's count is the number of times that it occurs in the chunks.

        episode          a0 a1 a2 a3 |           H = 3, of frames 0, 2 and 3
        chunk of 0       a0 a1 a2
        chunk of 2             a2 a3 a3
        chunk of 3                a3 a3 a3
        within            1  1  2  2             how often each occurs before the end
        past              0  0  0  3             and how often past it

    Past the end relative dimensions do not repeat the last action: they have one more value, 0.
    """
    episodes = index.episode_of(frames)
    # int64[n]: where each chunk ends in its episode. The ends ascend.
    end = np.minimum(
        frames + horizon, index.episodes["start"][episodes] + index.episodes["stop"][episodes]
    )
    # int64[n]: steps from here on are in no chunk before.
    begin = np.maximum(frames, np.append(0, end[:-1]))
    new = end - begin
    # The steps begin .. end - 1 of each chunk, one chunk after the other, without a loop.
    steps = np.repeat(end - np.cumsum(new), new) + np.arange(new.sum())
    # A step is in the chunks that begin at or before it, but for those that end at or before it.
    within = np.searchsorted(frames, steps, side="right") - np.searchsorted(
        end, steps, side="right"
    )
    # The last step of a chunk stands for all that the chunk has past the episode's end.
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
    """Returns one line for each dimension whose statistics a person should look at.

    Such a dimension hardly varies (see normalize.constant), or has a value a hundred times its
    usual range away. In zscore mode it may also be one whose standard deviation comes from a few
    far values, so that the others are scaled to almost nothing.
    """
    lines = []
    parts: tuple[tuple[str, Sequence[StateDim | ActionDim], VectorStatistics], ...] = (
        ("state", robot.embodiment.state, robot.statistics.state),
        ("actions", robot.embodiment.actions, robot.statistics.actions),
    )
    for part, dims, vector in parts:
        ranges = vector.ranges
        still, narrow = normalize.constant(vector, mode), normalize.constant(vector, "quantile")
        far = normalize.farthest_deviation(vector) > normalize.FAR
        usual = ranges.q99 - ranges.q01
        beyond = np.maximum(ranges.maximum - ranges.q99, ranges.q01 - ranges.minimum)
        for i, dim in enumerate(dims):
            unit = "" if dim.unit == "1" else f" {dim.unit}"
            value = f"mean {vector.mean[i]:g}{unit}, standard deviation {vector.std[i]:.1g}"
            most = f"within {ranges.q01[i]:g} to {ranges.q99[i]:g}"
            low, high = f"{ranges.minimum[i]:g}", f"{ranges.maximum[i]:g}{unit}"
            if still[i]:
                middle = f", 98% {most}" if mode == "quantile" else ""
                found = f"hardly varies ({value}{middle}); it is centred, not scaled"
            elif narrow[i] and far[i]:
                ends = f"98% {most}, all within {low} to {ranges.maximum[i]:g}"
                found = f"varies by a few far values ({value}; {ends}): in model units the others hardly do"
            elif not narrow[i] and beyond[i] > _SPIKE * usual[i]:
                found = f"lies {most}{unit} in 98% and reaches from {low} to {high}"
            else:
                continue
            lines.append(f"{name}: {part} {dim.name} {found}")
    return lines


def jumps(index: Index, horizon: int, statistics: Statistics) -> list[str]:
    """Returns one line for each angle that jumps though its record does not say that it turns.

    A jump is a change by more than half a turn; the line gives the first place. Columns are read
    for deltas that are so large by the statistics, and for all other angles.
    """
    robot = index.embodiment
    found = [_first_far_delta(index, horizon, i, statistics) for i in range(len(robot.actions))]
    targets = [dim if dim.kind == "absolute" and not dim.delta else None for dim in robot.actions]
    found += _first_far_steps(index, "state", robot.state, index.state)
    found += _first_far_steps(index, "action", targets, index.action)
    return [line for line in found if line]


def _first_far_delta(index: Index, horizon: int, i: int, statistics: Statistics) -> str | None:
    """Returns a line about the first delta of action i beyond half a turn, in whole chunks."""
    dim, ranges = index.embodiment.actions[i], statistics.actions.ranges
    half = _half_turn(dim)
    if not half or not dim.delta or max(-ranges.minimum[i], ranges.maximum[i]) <= half:
        return None
    every, size = index.frames("train"), max(1, _BLOCK // horizon)
    for start in range(0, len(every), size):
        frames = every[start : start + size]
        chunks, _ = index.chunks(frames, horizon)
        deltas = to_delta(chunks, index.state[frames], index.embodiment)[..., i]
        far = np.abs(deltas).max(axis=1)
        if (far > half).any():
            row = int((far > half).argmax())
            largest, what = deltas[row, np.abs(deltas[row]).argmax()], f"action {dim.name}"
            return _jump(index, int(frames[row]), what, dim, largest, "the state before it")
    return None


def _first_far_steps(
    index: Index, part: str, dims: Sequence[StateDim | ActionDim | None], columns: np.ndarray
) -> list[str]:
    """Returns a line for each column, but where the dimension is None, that jumps between steps."""
    # No change is larger than infinity, so that is the bound of what is passed over. It is also
    # the bound of a column whose first jump has been found.
    halves = np.array([(dim and _half_turn(dim)) or np.inf for dim in dims])
    found: dict[int, str] = {}
    for start in range(0, len(columns) - 1, _BLOCK) if np.isfinite(halves).any() else ():
        changes = np.diff(columns[start : start + _BLOCK + 1], axis=0)
        for i, dim in enumerate(dims):
            if dim is None or not np.isfinite(halves[i]):
                continue
            frames = start + 1 + np.flatnonzero(np.abs(changes[:, i]) > halves[i])
            # Nothing moves from the last step of one episode to the first of the next.
            steps, stops = index.step_of(frames), index.episodes["stop"][index.episode_of(frames)]
            if (inside := (steps > 0) & (steps < stops)).any():
                frame, what = int(frames[inside][0]), f"{part} {dim.name}"
                change = changes[frame - start - 1, i]
                found[i] = _jump(index, frame, what, dim, change, "the step before")
                halves[i] = np.inf
    return [found[i] for i in sorted(found)]


def _half_turn(dim: StateDim | ActionDim) -> float | None:
    """Returns half a turn of an angle that is not declared to turn, and None for the rest."""
    return None if dim.periodic or dim.unit not in TURN else TURN[dim.unit] / 2


def _jump(
    index: Index, frame: int, what: str, dim: StateDim | ActionDim, change: float, since: str
) -> str:
    episode, step = index.episode_of(frame), index.step_of(frame)
    return (
        f"{index.name}: {what} is {change:+.3g} {dim.unit} from {since} in episode {episode} of its index, step {step}:"
        " more than half a turn; an angle that turns is declared periodic in the robot's record"
    )


def _digest(index: Index) -> str:
    """Returns a name for what decides the statistics, beside horizon and index version."""
    robot = index.embodiment
    read = [[dim.kind, dim.delta, dim.one_means == "closed"] for dim in robot.actions]
    # These fields were added later. Each is named only where it is used, so that statistics that
    # were stored before are still found.
    further = {
        "ends": [[i, dim.ends] for i, dim in enumerate(robot.actions) if dim.open is not None],
        "delta of": [
            [i, place] for i, place in enumerate(robot.delta_states) if place not in (None, i)
        ],
        "turns": [
            [part, i, dim.turn]
            for part, dims in (("state", robot.state), ("actions", robot.actions))
            for i, dim in enumerate(dims)
            if dim.turn
        ],
    }
    named = [[name, entries] for name, entries in further.items() if entries]
    return hashlib.sha256(json.dumps([_FORMAT, read, *named]).encode()).hexdigest()[:16]


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the statistics with their hash, since one changed digit is still a statistic."""
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
        expected = (len(index.embodiment.state), len(index.embodiment.actions))
        found = tuple(len(vector.mean) for vector in statistics)
        if expected != found:
            raise InputError(
                f"{file}: expected {expected} dimensions of state and actions, found {found}"
            )
    except InputError as error:
        raise InputError(
            f"{error}; delete the file, and its statistics are computed again"
        ) from error
    return statistics
