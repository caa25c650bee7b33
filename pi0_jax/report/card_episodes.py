"""Chooses the episodes that a dataset card shows, and tells what their cameras and grippers did."""

from typing import Any

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.gripper_check import Gripper, grippers
from pi0_jax.embodiments import StateDim
from pi0_jax.report.card_facts import evenly
from pi0_jax.report.card_figures import Curve, Strip

_EPISODES = 3
_CANDIDATES = 60  # episodes among which those are chosen
_FRAMES = 6  # of each episode
# States that tell a gripper's range where none is declared.
_RANGE_SAMPLES = 100_000


def views(index: Index) -> list[tuple[str, int, str]]:
    """Returns every view of every camera.

    Returns:
        The camera, the `choice` of Index.observation that shows the view, and the view's name.
    """
    return [
        (name, choice, f"{name} ({path.rsplit('/', 1)[-1]})" if camera.alternatives else name)
        for name, camera in index.row.cameras.items()
        for choice, path in enumerate(camera.views)
    ]


def shown(index: Index) -> list[int]:
    """Returns evenly spaced episodes with kept frames.

    Of episodes that are close to each other it takes the one whose grippers move most.
    """
    usable = np.flatnonzero(index.episodes["kept"])
    usable = usable if len(usable) else np.arange(len(index.episodes["kept"]))
    candidates = usable[evenly(len(usable), _CANDIDATES)]
    parts = np.array_split(candidates, min(_EPISODES, len(candidates)))
    return [
        max(part.tolist(), key=lambda episode: _gripper_travel(index, episode)) for part in parts
    ]


def _gripper_travel(index: Index, episode: int) -> float:
    """Returns how much the gripper actions of an episode vary."""
    actions = [gripper.action for gripper in grippers(index) if gripper.action is not None]
    start, stop = index.episodes["start"][episode], index.episodes["stop"][episode]
    return float(index.action[start : start + stop, actions].std(axis=0).sum()) if stop else 0.0


def strip(index: Index, episode: int) -> Strip:
    """Returns evenly spaced frames of the episode, of every view; raises as Index.observation."""
    start, length = int(index.episodes["start"][episode]), int(index.episodes["length"][episode])
    steps = evenly(length, _FRAMES)
    choices = {choice for _, choice, _ in views(index)}
    seen: dict[int, list[Any]] = {
        choice: [index.observation(start + step, choice)["images"] for step in steps.tolist()]
        for choice in choices
    }
    images = {
        f"{label}\n{index.row.cameras[camera].order} assumed": [
            frame[camera] for frame in seen[choice]
        ]
        for camera, choice, label in views(index)
    }
    frames = index.frames(SPLITS[index.episodes["split"][episode]])
    first, last = np.searchsorted(frames, (start, start + length))
    kept = np.zeros(length, bool)
    kept[frames[first:last] - start] = True
    return Strip(steps, images, kept, index.embodiment.control_hz)


def curves(index: Index, episode: int, gripper: Gripper) -> list[Curve]:
    """Returns the gripper's opening over the episode, as each state and the action tell it.

    A state that declares its polarity comes before the action, and the other states come after it.
    """
    start, length = int(index.episodes["start"][episode]), int(index.episodes["length"][episode])
    states = [_state_curve(index, slice(start, start + length), state) for state in gripper.states]
    declared = [bool(index.embodiment.state[state].larger_is) for state in gripper.states]
    actions = [] if gripper.action is None else [_action_curve(index, episode, gripper.action)]
    first = [curve for curve, known in zip(states, declared, strict=True) if known]
    last = [curve for curve, known in zip(states, declared, strict=True) if not known]
    return [*first, *actions, *last]


def _state_curve(index: Index, steps: slice, state: int) -> Curve:
    dim = index.embodiment.state[state]
    low, high = _opening_range(dim, index.state[:, state])
    opening = (index.state[steps, state] - low) / (high - low)
    scale = "" if (low, high) == (0, 1) else f", {low:.3g} to {high:.3g} {dim.unit}"
    if dim.larger_is == "closed":
        return Curve(
            f"state {dim.name} (1 = closed, drawn upside down{scale})", 1 - opening, action=False
        )
    return Curve(
        f"state {dim.name} ({'1 = open' if dim.larger_is else 'polarity not declared'}{scale})",
        opening,
        action=False,
    )


def _action_curve(index: Index, episode: int, action: int) -> Curve:
    """Returns the curve of the action; it is NaN from the first step that has no action."""
    start, stop = int(index.episodes["start"][episode]), int(index.episodes["stop"][episode])
    opening = np.full(index.episodes["length"][episode], np.nan, np.float32)
    opening[:stop] = index.action[start : start + stop, action]
    return Curve(f"action {index.embodiment.actions[action].name} (1 = open)", opening, action=True)


def _opening_range(dim: StateDim, recorded: np.ndarray) -> tuple[float, float]:
    """Returns a gripper's values at its two ends.

    They are the declared ones. Without those they are 0 and 1 where that fits, or else the smallest
    and the largest value that is found.
    """
    if dim.open is not None and (ends := dim.ends) is not None:
        return min(ends), max(ends)
    if dim.low is not None and dim.high is not None:
        return dim.low, dim.high
    sample = recorded[evenly(len(recorded), _RANGE_SAMPLES)]
    low, high = float(sample.min()), float(sample.max())
    if dim.unit == "1" and low >= -0.1 and 0.5 < high <= 1.2:
        return 0.0, 1.0
    return low, high if high > low else low + 1
