"""E13: what do noise of the state and latency cost a policy that was trained without them?"""

import itertools
from functools import partial

import numpy as np

from pi0_jax.execution import OpenLoop
from pi0_jax.lab import worlds
from pi0_jax.lab.detour import TWO_SIDES
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair
from pi0_jax.observation import RawObservation

EXECUTED = 8, 1  # actions of a chunk
# Standard deviation (the workspace is 2 long), and ticks.
NOISE = {"clean": 0.0, **{f"noise {percent}%": percent / 50 for percent in (1, 2, 5, 10)}}
LATENCY = {"clean": 0, **{f"latency {ticks}": ticks for ticks in (1, 2, 4)}}


class WornWorld(worlds.TracedWorld):
    """Is the world with two sides whose sensors are noisy and whose actions come late."""

    def __init__(self, noise: float, latency: int) -> None:
        """Takes the noise's standard deviation, and by how many ticks actions are held back."""
        super().__init__(worlds.Detour(), worlds.RECORD, worlds.PROMPT)
        self._noise, self._latency = noise, latency

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self._rng = np.random.default_rng([seed, 0xE13])
        self._held = [self._seen["state"][:2]] * self._latency  # it waits where it is

    def observe(self) -> RawObservation:
        seen = super().observe()
        state = seen["state"] + self._noise * self._rng.standard_normal(len(seen["state"]))
        return {**seen, "state": state.astype(np.float32)}

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        self._held.append(action)
        return super().advance(self._held.pop(0))


def measure(at: Measuring) -> Outcomes:
    """Runs the same episodes with each noise and each latency."""
    policy, found = at.policy(TWO_SIDES), Outcomes()
    for executed in EXECUTED:
        for name in {**NOISE, **LATENCY}:
            worn = partial(worlds.opened, WornWorld, NOISE.get(name, 0.0), LATENCY.get(name, 0))
            episodes = at.rollouts(policy, worn, OpenLoop(executed))
            found[_arm(executed, name)] = worlds.outcomes(episodes)
    return found


def _arm(executed: int, name: str) -> str:
    return f"executing {executed}: {name}"


_PAIRS = [
    Pair(_arm(n, more), _arm(n, less), quantity)
    for levels, quantity in ((NOISE, "success"), (LATENCY, "ticks"))
    for n in EXECUTED
    for less, more in itertools.pairwise(levels)
]
EXPERIMENT = Experiment(
    name="robustness",
    title="E13. Noise of the state, and latency",
    asked="The notes on the paper (E13) ask how success falls with noise and with latency.",
    question="What do noise of the state (1, 2, 5, 10% of the workspace) and latency (1, 2, 4 ticks)"
    " cost a policy that was trained without them, if it executes whole chunks of 8, and if it"
    " predicts a new one at every tick?",
    design="E1's policies of the world with two sides, with nothing trained anew, in the same episodes."
    " Normal noise is added to place and goal whenever the policy looks. With a latency of k the"
    " point stays where it is for k ticks, and then does what was said k ticks ago.",
    limits="Demonstrations were jolted by 0.75% of the workspace in a tick, so states off the path were"
    " seen. An episode has 40 ticks for a way of 20, so who errs can try again. Actions are places,"
    " computed from the state that was seen: with a new chunk at every tick and a latency of k, k + 1"
    " ways take turns that know nothing of each other, each at 1/(k + 1) of the speed. No pixels.",
    trainings=(TWO_SIDES,),
    measure=(measure,),
    quantities=worlds.QUANTITIES,
    primary="success",
    told=("margin", "ticks"),
    pairs=tuple(_PAIRS),
    expected=(
        *(Expected(f"{more}: no better than the one before", "success", more, less, high=0.0)
          for more, less, _ in _PAIRS),
        *(Expected(f"{pair.arm} loses less than 10 points", "success", *pair[:2], -0.1)
          for pair in _PAIRS if "noise 1%" in pair.arm),
    ),
    seconds=45.0,
)  # fmt: skip
