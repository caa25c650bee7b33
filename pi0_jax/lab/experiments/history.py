"""E6: does a policy need the past, and does temporal ensembling stand in for it?"""

from functools import partial

import numpy as np

from pi0_jax.execution import Execution, OpenLoop, TemporalEnsemble
from pi0_jax.lab import hidden, worlds
from pi0_jax.lab.plan import WHOLE_CHUNKS, Expected, Experiment, Measuring, Outcomes, Pair
from pi0_jax.lab.runs import Training

ARMS = {
    kind: {
        frames: Training(
            f"{kind}_{frames}", partial(hidden.write, kind, frames), {"action_dim": 12}
        )
        for frames in (1, 4)
    }
    for kind in hidden.KINDS
}
WAYS: dict[str, tuple[int, Execution]] = {
    "one frame": (1, OpenLoop(1)),
    "four frames": (4, OpenLoop(1)),
    "ensemble": (1, TemporalEnsemble()),
    "whole chunks": (1, WHOLE_CHUNKS),
}


def measure(kind: str, at: Measuring) -> Outcomes:
    """Runs both policies of a kind of world; that of one frame in three ways."""
    policies = {frames: at.policy(one) for frames, one in ARMS[kind].items()}
    found: Outcomes = {}
    for name, (frames, execution) in WAYS.items():
        world = partial(worlds.opened, hidden.HiddenWorld, kind, frames)
        found[name] = worlds.arrivals(at.rollouts(policies[frames], world, execution))
    one, four, *others = (float(np.mean(arm["distance"])) for arm in found.values())
    if kind != "still":
        for name, distance in zip(("ensemble", "whole chunks"), others, strict=True):
            found[name]["closed"] = [(one - distance) / (one - four)]
    return {f"{kind}: {name}": arm for name, arm in found.items()}


_CUE, _MOTION, _STILL = ({name: f"{kind}: {name}" for name in WAYS} for kind in hidden.KINDS)
EXPERIMENT = Experiment(
    name="history",
    title="E6. History: a cue that is gone, and a motion that is not seen",
    asked="π0 sees the present alone; a reader's note on the paper (A) asks whether it needs history,"
    " and supposes that temporal ensembling stands in for it (E6).",
    question="How much does a policy lose that sees one frame, where a cue is shown at the start alone,"
    " or where a goal moves and its velocity is not in the state? Do four frames mend it? Does"
    " temporal ensembling of one frame, or executing whole chunks? Does history hurt where it says"
    " nothing?",
    design="A point must be where its goal is at tick 20. It goes straight on for two ticks, and then"
    " to its side. Cue: the goal's side is in the first tick's state alone. Motion: the goal moves up"
    " or down. Still: the goal is seen and stays. 200 demonstrations a world, the same for one frame"
    " and for four, which are further dimensions of the state. A new chunk is predicted at every"
    " tick, but for whole chunks, which execute all 8 actions.",
    limits="Four frames hold the cue just until the point has turned, and then its own place tells its"
    " side; longer waits need more. Four frames of images cost more than twelve numbers.",
    trainings=tuple(one for arms in ARMS.values() for one in arms.values()),
    measure=tuple(partial(measure, kind) for kind in hidden.KINDS),
    quantities={
        "distance": "from where the goal is at the last tick, then (workspace: 2)",
        "success": f"share of episodes in which this is less than {worlds.REACHED}",
        "closed": "share of what four frames gain in distance over one frame",
    },
    primary="distance",
    told=("success",),
    pairs=(
        Pair(_CUE["four frames"], _CUE["one frame"]),
        Pair(_MOTION["four frames"], _MOTION["one frame"]),
        Pair(_STILL["four frames"], _STILL["one frame"]),
        *(Pair(arms[way], arms["one frame"]) for way in ("ensemble", "whole chunks") for arms in (_CUE, _MOTION)),
    ),
    expected=(
        Expected("cue: one frame succeeds in 60% or less", "success", _CUE["one frame"], high=0.6),
        Expected("cue: four frames in 90% or more", "success", _CUE["four frames"], low=0.9),
        Expected("still: they differ by 3 points at most", "success", _STILL["four frames"], _STILL["one frame"], -0.03, 0.03),
        Expected("cue: the ensemble closes more than a quarter of the gap", "closed", _CUE["ensemble"], low=0.25),
        Expected("motion: so does it there", "closed", _MOTION["ensemble"], low=0.25),
    ),
    seconds=240.0,
)  # fmt: skip
