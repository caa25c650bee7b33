"""Tells what a dataset card says in numbers and words.

It samples columns, counts prompts, looks at grippers and lists what a person should look at. It
reads the whole episode table, but no other column as a whole: columns are sampled at evenly spaced
kept frames and at the ends of episodes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.findings import image_size, told_findings
from pi0_jax.data.index.gripper_check import Finding, Trend, grippers
from pi0_jax.data.index.validate import is_gripper
from pi0_jax.embodiments import ActionDim, StateDim
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.deltas import to_delta

# A histogram counts at most so many rows of state or actions.
SAMPLED_ROWS = 1_000_000
# The prompts of at most so many episodes are counted.
_SAMPLED_EPISODES = 50_000
# The chunks of so many frames are held at a time.
_BLOCK = 16_384
# A gripper that is closed at the beginning of more than this share of the episodes is suspicious.
_BEGIN_CLOSED = 0.8
_LISTED = 10


class Prompts(NamedTuple):
    """Holds the prompts of evenly spaced episodes."""

    episodes: int  # how many were counted
    counts: list[tuple[str, int]]  # each prompt and how many begin with it, most frequent first
    distinct: int  # prompts in the whole dataset
    empty: int  # of these episodes


def evenly(count: int, most: int) -> np.ndarray:
    """Returns int64[min(count, most)]: evenly spaced numbers below `count`, in rising order.

    They are the middles of equal parts of the range: for count 10 and most 2, they are 2 and 7.
    """
    taken = min(count, most)
    return (2 * np.arange(taken, dtype=np.int64) + 1) * count // max(2 * taken, 1)


def state_sample(index: Index) -> np.ndarray:
    """Returns the states of evenly spaced training frames, float32[n, S]."""
    frames = index.frames("train")
    return index.state[frames[evenly(len(frames), SAMPLED_ROWS)]]


def action_sample(index: Index, horizon: int) -> np.ndarray:
    """Returns the actions of the chunks from evenly spaced training frames on, float32[n, A].

    All steps of the chunks are there, in robot units with deltas taken: this is what is normalised.
    """
    frames, robot = index.frames("train"), index.embodiment
    chosen = frames[evenly(len(frames), max(1, SAMPLED_ROWS // horizon))]
    blocks = [chosen[i : i + _BLOCK] for i in range(0, len(chosen), _BLOCK)]
    chunks = [to_delta(index.chunks(one, horizon)[0], index.state[one], robot) for one in blocks]
    return np.concatenate(chunks).reshape(-1, len(robot.actions))


def dropped_steps(index: Index) -> list[tuple[str, int]]:
    """Returns why steps are never drawn, as far as the index tells, and how many for each reason.

    The reasons do not overlap: a step of a failed episode is not counted as one without a prompt.
    """
    episodes = index.episodes
    stop, unused = episodes["stop"].astype(np.int64), episodes["kept"] == 0
    failed = unused & (episodes["success"] == 0)
    silent = unused & ~failed & (not index.row.keep_empty_language)
    silent[silent] = [not index.prompt(int(start)) for start in episodes["start"][silent]]
    by_rule = (stop - episodes["kept"])[~failed & ~silent].sum()
    reasons = [
        ("after their episode's last action", (episodes["length"] - stop).sum()),
        ("in episodes marked as failed", stop[failed].sum()),
        ("in episodes without an instruction", stop[silent].sum()),
        ("by the row's rule, or for want of an instruction at that step", by_rule),
    ]
    return [(reason, int(count)) for reason, count in reasons if count]


def count_prompts(index: Index) -> Prompts:
    """Counts the prompts at the first step of evenly spaced episodes.

    An episode with several prompts is counted once for each of them.
    """
    starts = index.episodes["start"]
    chosen = starts[evenly(len(starts), _SAMPLED_EPISODES)].tolist()
    said = [dict.fromkeys(index.prompts_at(frame)) for frame in chosen]
    counts = Counter(prompt for prompts in said for prompt in prompts)
    empty = sum(not prompts for prompts in said)
    return Prompts(len(chosen), counts.most_common(), len(index.prompts), empty)


def findings(
    index: Index, statistics: normalize.Statistics, prompts: Prompts, followed: Sequence[Trend]
) -> list[Finding]:
    """Returns all that is wrong, and then what is worth a look."""
    skipped = [
        _wrong(f"skipped when the index was built: {one}") for one in index.skipped[:_LISTED]
    ]
    if more := len(index.skipped) - len(skipped):
        skipped.append(_wrong(f"... and {more:,} more episodes skipped when the index was built"))
    found = [
        *skipped,
        *(
            Finding(trend.finding.level, f"{trend.gripper}: {trend.finding.text}")
            for trend in followed
            if trend.finding.level != "fine"
        ),
        *_first_openings(index),
        *_dimension_findings("state", index.embodiment.state, statistics.state),
        *_dimension_findings("action", index.embodiment.actions, statistics.actions),
        *quick_findings(index, prompts),
    ]
    return sorted(found, key=lambda finding: finding.level != "wrong")


def quick_findings(index: Index, prompts: Prompts) -> list[Finding]:
    """Returns the findings that need no statistics."""
    varying = [
        _look(f"images of {view} vary in size: {image_size(index, view)}")
        for view, sizes in index.image_sizes.items()
        if sizes["min"] != sizes["max"]
    ]
    return [
        *_episode_findings(index),
        *_copy_findings(index),
        *_file_findings(index),
        *varying,
        *_prompt_findings(prompts),
        *told_findings(index),
    ]


def _look(text: str) -> Finding:
    return Finding("look", text)


def _wrong(text: str) -> Finding:
    return Finding("wrong", text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + " ..." * (len(names) > _LISTED)


def _episode_findings(index: Index) -> Iterator[Finding]:
    for split in SPLITS:
        if not len(index.frames(split)):
            empty = f"no frame is kept in split {split}"
            yield _wrong(empty) if split == "train" else _look(empty)
    stop, kept = index.episodes["stop"], index.episodes["kept"] > 0
    if unused := np.sum(~kept):
        yield _look(f"{unused:,} of {len(kept):,} episodes have no kept frame")
    if single := np.sum(kept & (stop == 1)):
        yield _look(f"{single:,} episodes have a single step: their chunks repeat one action")
    if failed := np.sum(kept & (index.episodes["success"] == 0)):
        yield _look(f"{failed:,} episodes marked as failed are kept")
    if reasons := dropped_steps(index):
        total = sum(count for _, count in reasons)
        listed = "; ".join(f"{count:,} {reason}" for reason, count in reasons)
        dropped = f"{total / index.steps:.1%} of the steps are dropped: {listed}"
        yield _wrong(dropped) if 2 * total > index.steps else _look(dropped)


def _copy_findings(index: Index) -> Iterator[Finding]:
    if copies := copied_episodes(index):
        split = index.episodes["split"]
        shared = sum(split[first] != split[other] for first, other in copies)
        leak = f"; of {shared:,} such pairs one is held out and the other trained on"
        listed = _listed([f"{other} of {first}" for first, other in copies])
        repeat = f"{len(copies):,} episodes repeat every state and action of another"
        yield _wrong(f"{repeat}{leak}: {listed}") if shared else _look(f"{repeat}: {listed}")


def copied_episodes(index: Index) -> list[tuple[int, int]]:
    """Returns pairs of numbers of episodes whose states and actions are equal bit for bit.

    The earlier one is first; of several copies, each is paired with the first. Episodes without a
    kept frame, or with one step only, are left out.

    Only episodes of equal length, first step and last step are read whole and compared.
    """
    start, stop = index.episodes["start"], index.episodes["stop"]
    acting = np.flatnonzero((index.episodes["kept"] > 0) & (stop > 1))
    ends = start[acting], start[acting] + stop[acting] - 1
    rows = [column[frames] for column in (index.state, index.action) for frames in ends]
    alike: dict[tuple[int, bytes], list[int]] = {}
    for episode, key in zip(acting.tolist(), np.concatenate(rows, axis=1), strict=True):
        alike.setdefault((int(stop[episode]), key.tobytes()), []).append(episode)
    copies = []
    for group in alike.values():
        known: dict[bytes, int] = {}
        for episode in group if len(group) > 1 else ():
            steps = slice(start[episode], start[episode] + stop[episode])
            values = index.state[steps].tobytes() + index.action[steps].tobytes()
            other = known.setdefault(hashlib.sha256(values).digest(), episode)
            if other != episode:
                copies.append((other, episode))
    return sorted(copies)


def _file_findings(index: Index) -> Iterator[Finding]:
    """Reports record files that another download, or one that was interrupted, has left."""
    if isinstance(index.shards[0], Path):
        named = {shard.name for shard in index.shards}
        found = {file.name for file in index.shards[0].parent.iterdir() if ".tfrecord" in file.name}
        if others := sorted(found - named):
            unread = f"{len(others):,} files that dataset_info.json does not name are not read"
            yield _look(f"{unread}: {_listed(others)}")


def _first_openings(index: Index) -> Iterator[Finding]:
    """Reports grippers that are told to be closed when most episodes begin.

    Where both state and action are inverted, this is the only sign of it in the columns.
    """
    frames, split = index.frames("train"), index.episodes["split"]
    episodes = np.flatnonzero((index.episodes["kept"] > 0) & (split == SPLITS.index("train")))
    if not len(episodes):
        return
    starts = index.episodes["start"][episodes[evenly(len(episodes), _SAMPLED_EPISODES)]]
    closed = (index.action[frames[np.searchsorted(frames, starts)]] < 0.5).mean(axis=0)
    for gripper in grippers(index):
        if gripper.action is not None and closed[gripper.action] > _BEGIN_CLOSED:
            begin = f"closed when {closed[gripper.action]:.0%} of the episodes begin"
            yield _look(f"{gripper.name}: {begin}, where most tasks begin open: see frames")


def _dimension_findings(
    part: str, dims: Sequence[StateDim | ActionDim], statistics: normalize.VectorStatistics
) -> Iterator[Finding]:
    still = normalize.constant(statistics, "zscore")
    narrow = normalize.constant(statistics, "quantile")
    reach, ranges = normalize.farthest_deviation(statistics), statistics.ranges
    for i, dim in enumerate(dims):
        name, unit = f"{part} dimension {dim.name}", "" if dim.unit == "1" else f" {dim.unit}"
        if still[i]:
            constant = f"{statistics.mean[i]:.4g}{unit} in every training frame"
            if is_gripper(dim):
                yield _wrong(f"gripper: {name} never moves: it is {constant}")
            else:
                yield _look(f"{name} is constant: {constant}")
            continue
        if narrow[i]:
            span = f"{ranges.q01[i]:.4g} to {ranges.q99[i]:.4g}{unit}"
            too = f"q01..q99 is too narrow ({span}): quantile normalisation only centres it"
            yield _look(f"{name}: {too}")
        if reach[i] > normalize.FAR:
            span = f"{ranges.minimum[i]:.4g} to {ranges.maximum[i]:.4g}{unit}"
            far = f"{reach[i]:.0f} standard deviations from its mean ({span})"
            yield _look(f"{name} reaches {far}")


def _prompt_findings(prompts: Prompts) -> Iterator[Finding]:
    if prompts.empty:
        yield _look(f"{prompts.empty:,} of {prompts.episodes:,} episodes have no instruction")
    if prompts.distinct == 1 and prompts.episodes > 1:
        yield _look("all episodes have the same instruction: language tells the policy nothing")
