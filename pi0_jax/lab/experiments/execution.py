"""E4: how should a chunk be executed, and is its tail less accurate?"""

from functools import partial
from pathlib import Path

import numpy as np

from pi0_jax.execution import Execution, OpenLoop, TemporalEnsemble
from pi0_jax.lab import figures, worlds
from pi0_jax.lab.detour import CHANGED, ONE_SIDE, TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Means, Measuring, Outcomes, Pair
from pi0_jax.policy import Policy

WAYS: dict[str, Execution] = {
    **{f"open loop of {steps}": OpenLoop(steps) for steps in (8, 4, 2, 1)},
    "ensemble": TemporalEnsemble(),
}
SIDES = {"two sides": TWO_SIDES, "one side": ONE_SIDE}
_FRESH_SEED, _FRESH = 10_000_000, 40  # demonstrations that no run was trained on
_DRAWS = 16  # chunks for each observation
_REFERENCE = 256  # continued demonstrations for each observation, whose mean is the truth


def _rollouts(world: str, at: Measuring) -> Outcomes:
    """Executes the same policy in five ways."""
    policy = at.policy(SIDES[world])
    return {
        f"{world}: {name}": worlds.outcomes(at.rollouts(policy, worlds.setting, execution))
        for name, execution in WAYS.items()
    }


def _places(policy: Policy, seed: int) -> Outcomes:
    """Compares chunks with the demonstrations' by the place in the chunk, where there is one way.

    The actions of demonstrations from one state differ more and more among themselves, because
    jolts add up, and the expert's path bends, so that their mean is not what an undisturbed expert
    does. So the mean of many chunks is compared with the mean of many continued demonstrations. A
    perfect sampler, which continues them with new jolts, has no bias then, whatever the place.
    """
    horizon, rng = policy.config.horizon, np.random.default_rng([seed, 0xE4])
    states, _, _ = worlds.demonstrations(_FRESH, _FRESH_SEED + seed, (1,))
    states = states[:, : -horizon + 1 : 3].reshape(-1, states.shape[2])
    seeds = seed * 1_000_000 + np.arange(_DRAWS * len(states))
    shape = (_DRAWS, len(states), horizon, 2)
    chunks = {
        "policy": policy.act(worlds.observed(states) * _DRAWS, seeds).reshape(shape),
        "perfect sampler": _continued(np.tile(states, (_DRAWS, 1)), horizon, rng).reshape(shape),
    }
    true = _continued(np.tile(states, (_REFERENCE, 1)), horizon, rng)
    true = true.reshape(_REFERENCE, *shape[1:])
    found = Outcomes()
    for name, drawn in chunks.items():
        scatter = drawn.var(axis=0, ddof=1).sum(axis=-1)  # float64[n, H]
        # The mean of so many draws is itself off by the scatter over their number.
        off = scatter / _DRAWS + true.var(axis=0, ddof=1).sum(axis=-1) / _REFERENCE
        squared = np.sum((drawn.mean(axis=0) - true.mean(axis=0)) ** 2, axis=-1) - off
        for place in range(horizon):
            found[_place(name, place + 1)] = {
                "squared bias": [float(squared[:, place].mean())],
                "spread": [float(np.sqrt(scatter[:, place].mean()))],
            }
    return found


def _continued(states: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Returns what demonstrations aim at next, float64[n, steps, 2], with new jolts."""
    position, goal = np.split(states.astype(np.float64), 2, axis=1)
    side, targets = np.ones(len(states)), []
    for _ in range(steps):
        targets.append(worlds.expert(position, goal, side))
        jolts = rng.normal(0.0, worlds.JOLT, position.shape)
        position = worlds.move(position, targets[-1] + jolts)
    return np.stack(targets, axis=1)


def _place(name: str, place: int) -> str:
    return f"{name}, place {place}"


def draw(means: Means, path: Path) -> None:
    """Draws margin and jerk of each way to execute, and the bias against place in the chunk."""
    ways = [f"{world}: {name}" for world in SIDES for name in WAYS]
    panels: dict[str, figures.Dots | figures.Lines] = {
        name: {way: means.of(way, name) for way in ways} for name in ("margin", "jerk")
    }
    places = range(1, 9)
    lines = {
        name: [means.of(_place(name, place), "squared bias") for place in places]
        for name in ("policy", "perfect sampler")
    }
    panels["squared bias"] = figures.Lines(places, "place in the chunk", lines, "linear")
    figures.draw(panels, path)


_LOOP = {steps: f"open loop of {steps}" for steps in (8, 4, 2, 1)}
_TWO, _ONE = ({name: f"{world}: {name}" for name in WAYS} for world in SIDES)
_FIRST, _LAST = _place("policy", 1), _place("policy", 8)
_EXPECTED = (
    Expected(
        "two sides: open loop succeeds 10 points more often than the ensemble",
        "success", _TWO[_LOOP[4]], _TWO["ensemble"], 0.1,
    ),
    Expected(
        "one side: they succeed equally, within 3 points",
        "success", _ONE[_LOOP[4]], _ONE["ensemble"], -0.03, 0.03,
    ),
    *(
        Expected(
            f"one side: the ensemble has less jerk than {loop}",
            "jerk", _ONE["ensemble"], _ONE[loop], high=0.0,
        )
        for loop in (_LOOP[4], _LOOP[1])
    ),
    Expected("the tail is less accurate", "squared bias", _LAST, _FIRST, 0.0),
)  # fmt: skip
EXPERIMENT = Experiment(
    name="execution",
    title="E4. Executing chunks: open loop of every length against temporal ensembling",
    asked="The paper (section IV, appendix D) found temporal ensembling to hurt; a reader's note (A)"
    " asks why, and claims that the tail of a chunk is less accurate.",
    question="How many actions of a chunk of 8 should be executed before the next one? Does the mean"
    " of overlapping chunks (ACT's temporal ensembling, decay 0.01) hurt where demonstrations have"
    " two ways, and help smoothness where they have one? Is the tail of a chunk less accurate?",
    design="E1's policies of the world with two sides, and as many of a world where all"
    " demonstrations go above. Each runs the same episodes in five ways. Where there is one way, the"
    " mean of 16 chunks from the same state is compared, place by place, with the mean of 256"
    " demonstrations that are continued from it with new jolts; no run was trained on these states."
    " A perfect sampler, which continues the demonstrations itself, is compared beside it.",
    limits="The world answers at once and without noise, so replanning has little to correct, and"
    " latency costs nothing here. Horizon 8 is short beside the paper's 50." + CHANGED,
    trainings=(TWO_SIDES, ONE_SIDE),
    measure=(
        partial(_rollouts, "two sides"),
        partial(_rollouts, "one side"),
        lambda at: _places(at.policy(ONE_SIDE), at.seed),
    ),
    quantities={
        **worlds.QUANTITIES,
        "squared bias": "squared distance of the mean action of chunks from that of demonstrations, less"
        " what their numbers add",
        "spread": "root mean variance of an action among chunks from the same state",
    },
    primary="margin",
    told=("clearance", "success", "jerk"),
    pairs=(
        *(Pair(_TWO["ensemble"], _TWO[_LOOP[steps]]) for steps in (4, 8, 2, 1)),
        Pair(_TWO[_LOOP[8]], _TWO[_LOOP[1]]),
        *(Pair(_ONE["ensemble"], _ONE[_LOOP[steps]], "jerk") for steps in (8, 4, 1)),
        Pair(_ONE[_LOOP[8]], _ONE[_LOOP[1]], "jerk"),
        Pair(_LAST, _FIRST, "squared bias"),
        Pair(_LAST, _place("policy", 4), "squared bias"),
        Pair(_LAST, _place("perfect sampler", 8), "spread"),
    ),
    expected=_EXPECTED,
    draw=draw,
    seconds=110.0,
    revision=3,
)
