"""Tells what a dataset card says in numbers and words.

It samples columns, counts prompts, looks at grippers and lists what a person should look at. It
reads the whole episode table, but no other column as a whole: columns are sampled at evenly spaced
kept frames and at the ends of episodes.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.findings import told_findings
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
    """Holds the prompts of evenly spaced episodes.

    Attributes:
        episodes: how many episodes were counted.
        counts: each prompt and how many of these episodes begin with it, most frequent first.
        distinct: the number of distinct prompts in the whole dataset.
        empty: how many of these episodes have no prompt.
    """

    episodes: int
    counts: list[tuple[str, int]]
    distinct: int
    empty: int


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
    frames = index.frames("train")
    chosen = frames[evenly(len(frames), max(1, SAMPLED_ROWS // horizon))]
    blocks = [chosen[i : i + _BLOCK] for i in range(0, len(chosen), _BLOCK)]
    return np.concatenate(
        [
            to_delta(index.chunks(block, horizon)[0], index.state[block], index.embodiment)
            for block in blocks
        ]
    ).reshape(-1, len(index.embodiment.actions))


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
    """Counts the prompts that evenly spaced episodes begin with.

    An episode with several instructions counts for each of them.
    """
    starts = index.episodes["start"]
    chosen = starts[evenly(len(starts), _SAMPLED_EPISODES)].tolist()
    said = [dict.fromkeys(index.prompts_at(frame)) for frame in chosen]
    counts = Counter(prompt for prompts in said for prompt in prompts)
    return Prompts(
        len(chosen), counts.most_common(), len(index.prompts), sum(not prompts for prompts in said)
    )


def findings(
    index: Index, statistics: normalize.Statistics, prompts: Prompts, followed: Sequence[Trend]
) -> list[Finding]:
    """Returns all that is wrong, and then what is worth a look."""
    found = [
        *_build_findings(index),
        *(
            Finding(trend.finding.level, f"{trend.gripper}: {trend.finding.text}")
            for trend in followed
            if trend.finding.level != "fine"
        ),
        *_still_grippers(index, statistics),
        *_first_openings(index),
        *_dimension_findings("state", index.embodiment.state, statistics.state),
        *_dimension_findings("action", index.embodiment.actions, statistics.actions),
        *quick_findings(index, prompts),
    ]
    return sorted(found, key=lambda finding: finding.level != "wrong")


def quick_findings(index: Index, prompts: Prompts) -> list[Finding]:
    """Returns the findings that need no statistics."""
    return [
        *_episode_findings(index),
        *_copy_findings(index),
        *_file_findings(index),
        *_image_findings(index),
        *_prompt_findings(prompts),
        *told_findings(index),
    ]


def _build_findings(index: Index) -> list[Finding]:
    found = [
        Finding("wrong", f"skipped when the index was built: {episode}")
        for episode in index.skipped[:_LISTED]
    ]
    if len(index.skipped) > _LISTED:
        found.append(
            Finding(
                "wrong",
                f"... and {len(index.skipped) - _LISTED:,} more episodes skipped when the index was built",
            )
        )
    return found


def _episode_findings(index: Index) -> list[Finding]:
    episodes, found = index.episodes, []
    for split in SPLITS:
        if not len(index.frames(split)):
            found.append(
                Finding(
                    "wrong" if split == "train" else "look", f"no frame is kept in split {split}"
                )
            )
    unused = int((episodes["kept"] == 0).sum())
    if unused:
        found.append(
            Finding("look", f"{unused:,} of {len(episodes['kept']):,} episodes have no kept frame")
        )
    single = int(((episodes["kept"] > 0) & (episodes["stop"] == 1)).sum())
    if single:
        found.append(
            Finding(
                "look", f"{single:,} episodes have a single step: their chunks repeat one action"
            )
        )
    failed = int(((episodes["kept"] > 0) & (episodes["success"] == 0)).sum())
    if failed:
        found.append(Finding("look", f"{failed:,} episodes marked as failed are kept"))
    reasons = dropped_steps(index)
    if reasons:
        total = sum(count for _, count in reasons)
        listed = "; ".join(f"{count:,} {reason}" for reason, count in reasons)
        found.append(
            Finding(
                "wrong" if 2 * total > index.steps else "look",
                f"{total / index.steps:.1%} of the steps are dropped: {listed}",
            )
        )
    return found


def _copy_findings(index: Index) -> list[Finding]:
    copies = copied_episodes(index)
    if not copies:
        return []
    split = index.episodes["split"]
    shared = sum(split[first] != split[other] for first, other in copies)
    leak = f"; of {shared:,} such pairs one is held out and the other trained on" if shared else ""
    listed = ", ".join(f"{other} of {first}" for first, other in copies[:_LISTED])
    text = f"{len(copies):,} episodes repeat every state and action of another{leak}: {listed}{' ...' if len(copies) > _LISTED else ''}"
    return [Finding("wrong" if shared else "look", text)]


def copied_episodes(index: Index) -> list[tuple[int, int]]:
    """Returns pairs of an episode and a later one with the same states and actions, to the bit.

    Episodes are first compared by their length, first and last step. All steps are read only of
    those that agree in these.
    """
    start, stop = index.episodes["start"], index.episodes["stop"]
    acting = np.flatnonzero((index.episodes["kept"] > 0) & (stop > 1))
    first, last = start[acting], start[acting] + stop[acting] - 1
    ends = np.concatenate(
        [column[frames] for column in (index.state, index.action) for frames in (first, last)],
        axis=1,
    )
    alike: dict[tuple[int, bytes], list[int]] = {}
    for episode, key in zip(acting.tolist(), ends, strict=True):
        alike.setdefault((int(stop[episode]), key.tobytes()), []).append(episode)
    copies = []
    for group in alike.values():
        known: dict[bytes, int] = {}
        for episode in group if len(group) > 1 else ():
            steps = slice(start[episode], start[episode] + stop[episode])
            values = hashlib.sha256(
                index.state[steps].tobytes() + index.action[steps].tobytes()
            ).digest()
            if (other := known.setdefault(values, episode)) != episode:
                copies.append((other, episode))
    return sorted(copies)


def _file_findings(index: Index) -> list[Finding]:
    """Reports record files that are not the dataset's own.

    Another download, or one that was interrupted, leaves such files.
    """
    folder = index.shards[0].parent if isinstance(index.shards[0], Path) else None
    named = {shard.name for shard in index.shards}
    others = (
        sorted(
            file.name
            for file in folder.iterdir()
            if ".tfrecord" in file.name and file.name not in named
        )
        if folder
        else []
    )
    listed = f"{', '.join(others[:_LISTED])}{' ...' if len(others) > _LISTED else ''}"
    return (
        [
            Finding(
                "look",
                f"{len(others):,} files that dataset_info.json does not name are not read: {listed}",
            )
        ]
        if others
        else []
    )


def _still_grippers(index: Index, statistics: normalize.Statistics) -> list[Finding]:
    parts: tuple[tuple[str, Sequence[StateDim | ActionDim], normalize.VectorStatistics], ...] = (
        ("state", index.embodiment.state, statistics.state),
        ("action", index.embodiment.actions, statistics.actions),
    )
    return [
        Finding(
            "wrong",
            f"gripper: {part} dimension {dim.name} never moves: it is {vector.mean[i]:.4g} in every training frame",
        )
        for part, dims, vector in parts
        for i, dim in enumerate(dims)
        if is_gripper(dim) and normalize.constant(vector, "zscore")[i]
    ]


def _first_openings(index: Index) -> list[Finding]:
    """Reports grippers that are told to be closed when most episodes begin.

    Where both state and action are inverted, this is the only sign of it in the columns.
    """
    frames = index.frames("train")
    episodes = np.flatnonzero(
        (index.episodes["kept"] > 0) & (index.episodes["split"] == SPLITS.index("train"))
    )
    starts = index.episodes["start"][episodes[evenly(len(episodes), _SAMPLED_EPISODES)]]
    if not len(starts):
        return []
    first = index.action[frames[np.searchsorted(frames, starts)]]
    closed = (first < 0.5).mean(axis=0)
    return [
        Finding(
            "look",
            f"{gripper.name}: closed when {closed[gripper.action]:.0%} of the episodes begin, where most tasks begin open: see frames",
        )
        for gripper in grippers(index)
        if gripper.action is not None and closed[gripper.action] > _BEGIN_CLOSED
    ]


def _dimension_findings(
    part: str,
    dims: Sequence[StateDim | ActionDim],
    statistics: normalize.VectorStatistics,
) -> list[Finding]:
    still, narrow = (
        normalize.constant(statistics, "zscore"),
        normalize.constant(statistics, "quantile"),
    )
    reach, ranges = normalize.farthest_deviation(statistics), statistics.ranges
    found = []
    for i, dim in enumerate(dims):
        unit = "" if dim.unit == "1" else f" {dim.unit}"
        if still[i] and not is_gripper(dim):
            found.append(
                Finding(
                    "look",
                    f"{part} dimension {dim.name} is constant: {statistics.mean[i]:.4g}{unit} in every training frame",
                )
            )
        elif narrow[i] and not still[i]:
            span = f"{ranges.q01[i]:.4g} to {ranges.q99[i]:.4g}{unit}"
            text = f"{part} dimension {dim.name}: q01..q99 is too narrow ({span}): quantile normalisation only centres it"
            found.append(Finding("look", text))
        if not still[i] and reach[i] > normalize.FAR:
            span = f"{ranges.minimum[i]:.4g} to {ranges.maximum[i]:.4g}{unit}"
            found.append(
                Finding(
                    "look",
                    f"{part} dimension {dim.name} reaches {reach[i]:.0f} standard deviations from its mean ({span})",
                )
            )
    return found


def _image_findings(index: Index) -> list[Finding]:
    return [
        Finding(
            "look", f"images of {view} vary in size: {_size(sizes['min'])} to {_size(sizes['max'])}"
        )
        for view, sizes in index.image_sizes.items()
        if sizes["min"] != sizes["max"]
    ]


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def image_size(index: Index, view: str) -> str:
    """Returns height x width in words, or a range where images vary."""
    smallest, largest = (_size(index.image_sizes[view][end]) for end in ("min", "max"))
    return smallest if smallest == largest else f"{smallest} to {largest}"


def _prompt_findings(prompts: Prompts) -> list[Finding]:
    found = []
    if prompts.empty:
        found.append(
            Finding(
                "look", f"{prompts.empty:,} of {prompts.episodes:,} episodes have no instruction"
            )
        )
    if prompts.distinct == 1 and prompts.episodes > 1:
        found.append(
            Finding(
                "look", "all episodes have the same instruction: language tells the policy nothing"
            )
        )
    return found
