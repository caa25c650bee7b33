"""E4: how should a chunk be executed, and is its tail less accurate?"""

from pathlib import Path

import numpy as np

from pi0_jax.execution import Execution, OpenLoop, TemporalEnsemble
from pi0_jax.lab import figures, worlds
from pi0_jax.lab.experiments.detour import ONE_SIDE, SIDES, TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Means, Measuring, Outcomes
from pi0_jax.policy import Policy

WAYS: dict[str, Execution] = {
    **{f"open loop of {steps}": OpenLoop(steps) for steps in (8, 4, 2, 1)},
    "ensemble": TemporalEnsemble(),
}
_FRESH_SEED, _FRESH = 10_000_000, 40  # demonstrations that no run was trained on
_NOISE = 4  # draws of noise for each observation


def measure(at: Measuring) -> Outcomes:
    """Executes the same policies in five ways, and compares chunks with demonstrations."""
    found: Outcomes = {}
    for world, (training, sides) in SIDES.items():
        one = at.trained[training]
        policy = one.policy()
        for name, execution in WAYS.items():
            episodes = one.rollouts(
                policy, worlds.setting, execution, episodes=at.episodes, seed=at.seed
            )
            found[f"{world}: {name}"] = worlds.outcomes(episodes)
        for place, errors in enumerate(_errors(policy, sides, at.seed), 1):
            found[f"{world}: place {place}"] = {"error": errors.tolist()}
    return found


def _errors(policy: Policy, sides: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns how far chunks lie from what the expert would do, float64[H, frames].

    The expert acts undisturbed from the same state, by the side to which the chunk is nearer.
    """
    horizon = policy.config.horizon
    states, _, _ = worlds.demonstrations(_FRESH, _FRESH_SEED + seed, sides)
    states = states[:, : -horizon + 1 : 3].reshape(-1, states.shape[2])
    observations = worlds.observed(states) * _NOISE
    chunks = policy.act(observations, range(len(observations)))  # float32[n, H, 2]
    errors = []
    for side in sides:
        position, goal = np.split(states.astype(np.float64), 2, axis=1)
        way = []
        for _ in range(horizon):
            position = worlds.expert(position, goal, np.full(len(position), side))
            way.append(position)
        true = np.tile(np.stack(way, 1), (_NOISE, 1, 1))
        errors.append(np.linalg.norm(chunks - true, axis=2))  # float64[n, H]
    nearer = np.argmin([error.mean(axis=1) for error in errors], axis=0)
    return np.stack(errors)[nearer, np.arange(len(nearer))].T


def draw(means: Means, path: Path) -> None:
    """Draws clearance and jerk of each way to execute, and the error against place in the chunk."""
    ways = [f"{world}: {name}" for world in SIDES for name in WAYS]
    places = range(1, 9)
    lines = {
        world: [means.of(f"{world}: place {place}", "error") for place in places] for world in SIDES
    }
    figures.dots_and_lines(
        {name: {way: means.of(way, name) for way in ways} for name in ("clearance", "jerk")},
        list(places), lines, ("place in the chunk", "error"), path,
    )  # fmt: skip


_TWO, _ONE = "two sides: ", "one side: "
EXPERIMENT = Experiment(
    name="execution",
    title="E4. Executing chunks: open loop of every length against temporal ensembling",
    asked="The paper (section IV, appendix D) found temporal ensembling to hurt; a reader's note (A)"
    " asks why, and claims that the tail of a chunk is less accurate.",
    question="How many actions of a chunk of 8 should be executed before the next one? Does the mean"
    " of overlapping chunks (ACT's temporal ensembling, decay 0.01) hurt where demonstrations have"
    " two ways, and help smoothness where they have one? Is the tail of a chunk less accurate?",
    design="E1's policies of the world with two sides, and as many of a world where all"
    " demonstrations go above. Each runs the same episodes in five ways. Chunks are compared with"
    " what the expert would do undisturbed from the same states, of demonstrations on which no run"
    " was trained, by the side to which the chunk is nearer.",
    limits="The world answers at once and without noise, so replanning has little to correct, and"
    " latency costs nothing here. Horizon 8 is short beside the paper's 50.",
    trainings=(TWO_SIDES, ONE_SIDE),
    measure=measure,
    quantities={
        **worlds.QUANTITIES,
        "error": "distance of a chunk's action from the expert's (workspace: 2)",
    },
    primary="clearance",
    pairs=(
        *((f"{_TWO}ensemble", f"{_TWO}open loop of {steps}") for steps in (8, 4, 2, 1)),
        *((f"{_ONE}ensemble", f"{_ONE}open loop of {steps}") for steps in (8, 4, 1)),
        (f"{_TWO}open loop of 8", f"{_TWO}open loop of 1"),
        (f"{_ONE}open loop of 8", f"{_ONE}open loop of 1"),
        (f"{_TWO}place 8", f"{_TWO}place 1"),
        (f"{_ONE}place 8", f"{_ONE}place 1"),
        (f"{_ONE}place 8", f"{_ONE}place 4"),
    ),
    expected=(
        Expected(
            "two sides: open loop succeeds 10 points more often than the ensemble",
            "success",
            f"{_TWO}open loop of 4",
            f"{_TWO}ensemble",
            low=0.1,
        ),
        Expected(
            "one side: they succeed equally, within 3 points",
            "success",
            f"{_ONE}open loop of 4",
            f"{_ONE}ensemble",
            low=-0.03,
            high=0.03,
        ),
        Expected(
            "one side: the ensemble has less jerk",
            "jerk",
            f"{_ONE}ensemble",
            f"{_ONE}open loop of 4",
            high=0.0,
        ),
        Expected(
            "one side: the tail is less accurate",
            "error",
            f"{_ONE}place 8",
            f"{_ONE}place 1",
            low=0.0,
        ),
    ),
    draw=draw,
    seconds=110.0,
)
