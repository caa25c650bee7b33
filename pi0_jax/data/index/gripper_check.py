"""Finds from a dataset's own numbers which way its grippers count.

It asks whether the state follows the action as it is declared to.

    command   1 1 1 0 0 0 1      actions are indexed with 1 = open
    state     1 1 1 1 0 0 0      follows a step later, and so counts 1 = open
    first movement of each: command 1 -> 0 at step 3, state 1 -> 0 at step 4: the same way

Two signs must agree. The first sign is that the first movement of an episode's command is answered
by the first movement of its state. It also holds for a gripper that is told to open and close at
an even beat, where a state that is delayed by half a period looks like an inverted one. The second
sign is that at some delay command and state are correlated the same way. If the two do not agree,
the answer is that it cannot be told.
"""

from typing import Literal, NamedTuple

import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.validate import is_gripper
from pi0_jax.embodiments import StateDim

_EPISODES = 2_000  # read at most
_STEPS = 200_000
_FOLLOWS = 0.3  # a correlation from here on counts
# From here on a correlation counts even if no movements could be matched. But no opposite
# correlation may be half as large.
_ALONE = 0.5
_LATEST_S = 1.0  # a gripper takes at most so long to follow its command
_ANSWER_S = 1.5  # and its first movement takes at most so long to be half done
_LEAN = 0.5  # one way must be ahead by this share of the first movements
_MANY, _CLEAR = 5, 0.8  # so many movements that lean so clearly need no correlation
_COMMAND_SPREAD, _STATE_SPREAD = 0.1, 1e-6  # what moves less does not move
_AS_GOOD = 0.95  # of two delays that explain nearly the same, the shorter one holds


class Finding(NamedTuple):
    """Holds something that a person should see."""

    level: Literal["wrong", "look", "fine"]  # "look": it is worth a look, and often as it should be
    text: str


class Gripper(NamedTuple):
    """Holds one gripper's place in the action, and the state dimensions that show its opening."""

    name: str
    action: int | None
    states: tuple[int, ...]


class Trend(NamedTuple):
    """Says how one state dimension of a gripper moves with the gripper's action."""

    gripper: str
    state: str
    declared: str  # which way the state counts, as the embodiment says: "open", "closed" or ""
    finding: Finding


class Following(NamedTuple):
    """Says how a gripper's state moves with its commands, where 1 = open."""

    way: int  # 1 if it rises as the command opens, -1 if it falls, 0 if that cannot be told
    correlation: float  # the strongest one
    lag: int  # steps between command and state at that correlation
    movements: int  # episodes of which the first movements could be matched


def grippers(index: Index) -> list[Gripper]:
    """Returns the robot's grippers.

    A state belongs to the action of the same name, or to the only action of a gripper.
    """
    states = {i: dim.name for i, dim in enumerate(index.embodiment.state) if is_gripper(dim)}
    actions = {i: dim.name for i, dim in enumerate(index.embodiment.actions) if is_gripper(dim)}
    found = [
        Gripper(name, i, tuple(s for s in states if states[s] == name or len(actions) == 1))
        for i, name in actions.items()
    ]
    paired = {state for gripper in found for state in gripper.states}
    return found + [Gripper(name, None, (i,)) for i, name in states.items() if i not in paired]


def trends(index: Index) -> list[Trend]:
    """Checks for every gripper with an action and a state whether the state follows as declared."""
    spans, found, hertz = _spans(index), [], index.embodiment.control_hz
    for gripper in grippers(index):
        for state in gripper.states if gripper.action is not None else ():
            dim = index.embodiment.state[state]
            commands = [index.action[first:stop, gripper.action] for first, stop, _ in spans]
            states = [opening(dim, index.state[first:end, state]) for first, _, end in spans]
            followed = follow(list(zip(commands, states, strict=True)), hertz)
            found.append(_trend(gripper.name, dim, declared_way(dim), followed, hertz))
    return found


def gripper_lines(index: Index) -> list[Finding]:
    """Returns for every gripper what `trends` finds, or that no state of it is recorded."""
    known = trends(index)
    shown = {trend.gripper for trend in known}
    return [
        Finding(trend.finding.level, f"{trend.gripper} ({trend.state}): {trend.finding.text}")
        for trend in known
    ] + [
        Finding("look", f"{gripper.name}: no state shows it, so the polarity can't be checked")
        for gripper in grippers(index)
        if gripper.action is not None and gripper.name not in shown
    ]


def declared_way(dim: StateDim) -> str:
    """Returns which way a gripper's state is declared to count; a distance in metres is "open"."""
    return dim.larger_is or ("open" if dim.unit == "m" else "")


def opening(dim: StateDim, values: np.ndarray) -> np.ndarray:
    """Returns a gripper's state as it counts."""
    # A finger may move in the negative direction.
    return np.abs(values) if dim.unit == "m" and not dim.larger_is else values


def follow(episodes: list[tuple[np.ndarray, np.ndarray]], hertz: float) -> Following:
    """Finds which way the state goes as the command opens.

    Args:
        episodes: for each the commands, float[t], and the states from the same step on,
            float[t or more].
        hertz: steps a second; 0 if that is not known, which counts as 10.
    """
    hertz = hertz or 10.0
    episodes = [(command, state) for command, state in episodes if len(command)]
    commands, states = (
        np.concatenate([np.empty(0, np.float32), *part]).astype(np.float64)
        for part in (zip(*episodes, strict=True) if episodes else ((), ()))
    )
    if not len(commands) or np.ptp(commands) < _COMMAND_SPREAD or np.std(states) < _STATE_SPREAD:
        return Following(0, 0.0, 0, 0)
    correlations = _correlations(episodes, max(1, int(np.ceil(_LATEST_S * hertz))))
    lag = int((np.abs(correlations) >= _AS_GOOD * np.abs(correlations).max()).argmax())
    best = float(correlations[lag])
    middles = (np.ptp(commands) / 2 + commands.min(), np.percentile(states, (2, 98)).mean())
    votes = _votes(episodes, *middles, latest=max(2, round(_ANSWER_S * hertz)))
    way = _way(votes, correlations, best)
    if way * best < 0:
        # At an even beat the strongest correlation may be that of another period. The delay is
        # then the one that goes with the first movements.
        lag = int((way * correlations).argmax())
    return Following(way, float(correlations[lag]), lag, len(votes))


def _way(votes: list[int], correlations: np.ndarray, best: float) -> int:
    """Decides which way the state goes: 1, -1, or 0 if that cannot be told."""
    if not votes:
        side = int(np.sign(best))
        rival = (-side * correlations).max()
        return side if abs(best) >= _ALONE and rival < abs(best) / 2 else 0
    lean, side = abs(np.mean(votes)), int(np.sign(np.sum(votes)))
    together = (side * correlations).max() >= _FOLLOWS
    clear = len(votes) >= _MANY and lean >= _CLEAR
    return side if lean >= _LEAN and (together or clear) else 0


def _votes(
    episodes: list[tuple[np.ndarray, np.ndarray]], middle: float, state_middle: float, latest: int
) -> list[int]:
    """Returns for each episode whose first command is answered in time: 1 if the same way, or -1."""
    votes = []
    for command, state in episodes:
        told, moved = _first_movement(command > middle), _first_movement(state > state_middle)
        # The state may be one step ahead, in a dataset whose commands were made from its states.
        if told and moved and -1 <= moved[0] - told[0] <= latest:
            votes.append(told[1] * moved[1])
    return votes


def _first_movement(above: np.ndarray) -> tuple[int, int] | None:
    """Returns step and direction of the first change in bool[t]."""
    changes = np.flatnonzero(above[1:] != above[:-1])
    return (int(changes[0]) + 1, 1 if above[changes[0] + 1] else -1) if len(changes) else None


def _correlations(episodes: list[tuple[np.ndarray, np.ndarray]], latest: int) -> np.ndarray:
    """Returns the correlation of commands with states 0 .. latest steps later in the episode."""
    found = np.zeros(latest + 1)
    for lag in range(latest + 1):
        pairs = [
            (command[: len(state) - lag], state[lag : lag + len(command)])
            for command, state in episodes
            if len(state) > lag
        ]
        if pairs:
            found[lag] = _correlation(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
    return found


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Returns Pearson's correlation, or 0 if x or y does not vary."""
    x, y = (values.astype(np.float64) for values in (x, y))
    if len(x) < 2 or min(x.std(), y.std()) < _STATE_SPREAD:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _spans(index: Index) -> list[tuple[int, int, int]]:
    """Returns first kept frame, end of actions and end of states of evenly spaced episodes."""
    episodes = index.episodes
    kept = np.flatnonzero(episodes["kept"])
    if not len(kept):
        return []
    most = min(_EPISODES, max(1, int(_STEPS // episodes["length"][kept].mean())))
    chosen = kept[np.linspace(0, len(kept) - 1, min(most, len(kept))).astype(int)]
    spans: list[tuple[int, int, int]] = []
    for split, name in enumerate(SPLITS):
        mine = chosen[episodes["split"][chosen] == split]
        start, frames = episodes["start"][mine], index.frames(name)
        ends = (start + episodes[column][mine] for column in ("stop", "length"))
        first = frames[np.searchsorted(frames, start)]
        spans += map(tuple, np.stack([first, *ends], axis=1).tolist())
    return spans


def _trend(gripper: str, state: StateDim, declared: str, found: Following, hertz: float) -> Trend:
    """Puts what was found into words."""
    moves, counts = ("rises", "open") if found.way > 0 else ("falls", "closed")
    delay = f"{found.lag / hertz:.2g} s" if hertz else f"{found.lag} steps"
    correlation = f"correlation {found.correlation:+.2f}"
    measured = f"the state {moves} as the action opens ({correlation}, {delay} later)"
    other = ": the state counts the other way" if counts == "closed" else ""
    if not found.way and abs(found.correlation) < _FOLLOWS:
        text = f"state and action hardly move together ({correlation}), so the polarity can't be checked"
        finding = Finding("look", text)
    elif not found.way:
        text = (
            f"state and action move together now one way and now the other ({correlation}, {delay} later;"
            f" {found.movements} episodes compared), so the polarity can't be told"
        )
        finding = Finding("look", text)
    elif not declared:
        finding = Finding("look", f"{measured}{other}; the embodiment does not declare which way")
    elif declared != counts:
        finding = Finding(
            "wrong", f"INVERTED action or state: {measured}, though it is declared 1 = {declared}"
        )
    else:
        finding = Finding("fine", f"{measured}, as declared{other}")
    return Trend(gripper, state.name, state.larger_is, finding)
