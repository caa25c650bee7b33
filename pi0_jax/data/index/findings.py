"""Finds what a person should know of an index before training on it."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.gripper_check import Finding, gripper_lines
from pi0_jax.embodiments import ActionDim, StateDim

_LISTED = 3
_LONG_PROMPT = 1000  # characters; the longest instruction of a public dataset has some 300
_SHOWN = 40
_SAMPLED = 10_000  # frames that are read; each may lie at another place on the disk
# No movement is larger than others by so much: this many times the range of 90% of the values.
_SPIKE = 100.0
_NO_WORDS = ("none", "null", "nan", "n/a", "na", "nil", "undefined", "unknown", "todo", "test", "string", "b''", '""')  # fmt: skip
_REPRESENTED = re.compile(r"""^b?(['"]).*\1$|^b['"]|^\[.*\]$|^<.*>$""", re.DOTALL)


def index_findings(index: Index) -> list[Finding]:
    """Returns what is to be printed before training."""
    return [*gripper_lines(index), *still_findings(index), *told_findings(index)]


def still_findings(index: Index) -> list[Finding]:
    """Returns the dimensions that have one value at every frame that may be drawn."""
    chosen = _chosen(index)
    found = []
    for part, dims, values in _columns(index, chosen) if len(chosen) > 1 else ():
        moves = np.ptp(values, axis=0)
        if names := [dim.name for dim, moved in zip(dims, moves, strict=True) if not moved]:
            text = f"{part} {', '.join(names)}: the same number at every frame"
            found.append(Finding("look", text))
    return found


def told_findings(index: Index) -> list[Finding]:
    """Returns what is odd about the episodes, their instructions, images and numbers."""
    return [
        Finding("look", text)
        for text in (
            *_old(index),
            *_told(index),
            *odd_prompts(index),
            *_sizes(index),
            *_spikes(index),
        )
    ]


def _told(index: Index) -> Iterator[str]:
    for text, (count, where) in index.told.items():
        yield f"{count:,} episodes: {text}; the first is {where}"


def odd_prompts(index: Index) -> Iterator[str]:
    """Yields one line for each kind of instruction that nobody says to a robot."""
    kinds: dict[str, list[str]] = {}
    for prompt in index.prompts:
        for kind in _prompt_kinds(prompt):
            kinds.setdefault(kind, []).append(prompt)
    for kind, prompts in kinds.items():
        shown = ", ".join(_short(prompt) for prompt in prompts[:_LISTED])
        more = " ..." if len(prompts) > _LISTED else ""
        yield f"{len(prompts):,} of {len(index.prompts):,} instructions {kind}: {shown}{more}"


def why_no_frames(index: Index, split: str) -> str:
    """Returns the cause and the cure, for a split of which no frame may be drawn."""
    episodes = index.episodes
    mine = episodes["split"] == SPLITS.index(split)
    total, count = len(mine), int(mine.sum())
    if not total:
        return f"all {len(index.skipped):,} episodes were left out as bad; see `left out` in the output of launch.index"
    if not count and split == "val":
        return (
            f"none of its {total:,} episodes is held out; train without validation (config.validation_frames=0)"
            " or set the row's held_out"
        )
    if not count:
        return f"all of its {total:,} episodes are held out; lower the row's held_out, or name its training split train"
    causes = []
    silent = sum(not index.prompts_at(int(start)) for start in episodes["start"][mine])
    if silent and not index.row.keep_empty_language:
        causes.append(
            f"{silent:,} have no instruction (draw them with config.keep_empty_language=('{index.name}',))"
        )
    if failed := int((episodes["success"][mine] == 0).sum()):
        causes.append(f"{failed:,} are marked as failed")
    short = int((episodes["stop"][mine] == 0).sum())
    if short:
        causes.append(f"{short:,} have no step with an action")
    if silent + failed + short < count:
        causes.append("the row's rule keeps no step (its `keep`)")
    cure = "; or train without validation (config.validation_frames=0)" if split == "val" else ""
    return f"of its {count:,} episodes in that split {'; '.join(causes)}{cure}"


def _prompt_kinds(prompt: str) -> Iterator[str]:
    if prompt.lower() in _NO_WORDS:
        yield "stand for nothing"
    elif not any(letter.isalpha() for letter in prompt):
        yield "have no letter"
    if _REPRESENTED.match(prompt):
        yield "look like the text of a program's value"
    if any(not letter.isprintable() and letter not in "\n\t" for letter in prompt):
        yield "hold characters that cannot be printed"
    elif "\ufffd" in prompt:
        yield "hold the sign of a character that could not be read"
    elif "\n" in prompt or "\t" in prompt:
        yield "hold line breaks or tabs"
    if len(prompt) > _LONG_PROMPT:
        yield f"have more than {_LONG_PROMPT:,} characters"


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}...")


def _old(index: Index) -> Iterator[str]:
    if not index.has_checksums:
        yield (
            "its index has no checksums and tells no oddities, since an older version built it;"
            f" delete {index.path} and build it again to have them"
        )


def _sizes(index: Index) -> Iterator[str]:
    """Yields a line for each view whose images have another size than features.json declares."""
    for view, sizes in index.image_sizes.items():
        declared = index.declared_sizes.get(view, [None, None])
        if sizes and any(
            size not in (None, found)
            for end in ("min", "max")
            for size, found in zip(declared, sizes[end], strict=True)
        ):
            said = "x".join("any" if size is None else str(size) for size in declared)
            yield f"images of {view} are {image_size(index, view)} where features.json says {said}"


def image_size(index: Index, view: str) -> str:
    """Returns height x width of a view's images in words, or a range where they vary."""
    sizes = index.image_sizes[view]
    return " to ".join(dict.fromkeys("x".join(map(str, sizes[end])) for end in ("min", "max")))


def _chosen(index: Index) -> np.ndarray:
    """Returns int64[n]: evenly spaced frames that may be drawn, or all if they are not too many."""
    every = max(1, sum(len(index.frames(split)) for split in SPLITS) // _SAMPLED)
    return np.concatenate([index.frames(split)[::every] for split in SPLITS])


def _columns(
    index: Index, frames: np.ndarray
) -> Iterator[tuple[str, Sequence[StateDim | ActionDim], np.ndarray]]:
    """Yields the name, the dimensions and the values of state and action at these frames."""
    yield "state", index.embodiment.state, index.state[frames]
    yield "action", index.embodiment.actions, index.action[frames]


def _spikes(index: Index) -> Iterator[str]:
    """Yields a line for each dimension with a value far beyond its usual range."""
    chosen = _chosen(index)
    for part, dims, values in _columns(index, chosen):
        for number, dim in enumerate(dims if len(chosen) else ()):
            low, high = np.percentile(values[:, number], (5, 95))
            beyond = np.maximum(values[:, number] - high, low - values[:, number])
            worst = int(beyond.argmax())
            if high > low and beyond[worst] > _SPIKE * (high - low):
                episode, step = index.episode_of(chosen[worst]), index.step_of(chosen[worst])
                yield (
                    f"episode {episode} of the index, step {step}: {part} {dim.name} is {values[worst, number]:.4g},"
                    f" where 90% lie within {low:.4g} to {high:.4g}"
                )
