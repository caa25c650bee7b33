"""E10: how many demonstrations of a new task are enough, from pre-trained weights and from scratch?"""

from functools import partial

import numpy as np

from pi0_jax.lab import figures, worlds
from pi0_jax.lab.detour import route, taken, training
from pi0_jax.lab.plan import Expected, Experiment, Measuring, Outcomes, Pair, pooled

TASK, COUNTS = "far above", (2, 3, 4, 8)
ENOUGH = 0.8  # share of successes
_START = {"initial_weights": "pretrained", "steps": 400, "learning_rate": 2e-3}
PRETRAINED = training("pretrained", route("above"), route("below"), route("far below"))
METHODS = {
    "scratch": {},
    "all weights": _START,
    # As in configs/pi0_finetune.py, with smaller ranks.
    "expert only": {**_START, "frozen": ("PaliGemma/img/", "PaliGemma/llm/(?!.*_1/)")},
    "LoRA": {
        **_START,
        "frozen": ("PaliGemma/(img|llm)/",),
        "lora": ({"path": "llm/layers/(attn|mlp)", "rank": 4, "alpha": 4.0},),
        "ema_decay": 0.0,
    },
}
ARMS = {
    method: {
        count: training(f"{method.replace(' ', '_')}_{count}", route(TASK, count), **changes)
        for count in COUNTS
    }
    for method, changes in METHODS.items()
}


def _arm(method: str, count: int) -> str:
    return f"{method}, {count}"


def measure(method: str, at: Measuring) -> Outcomes:
    """Asks the policies of one method for the new task."""
    found = {
        _arm(method, count): taken(at, at.policy(one), route(TASK))
        for count, one in ARMS[method].items()
    }
    needed = log_needed([float(np.mean(one["success"])) for one in found.values()])
    return {method: {**pooled(found.values()), "log2 needed": [needed]}, **found}


def log_needed(success: list[float]) -> float:
    """Returns log2 of the demonstrations at 80%, on a line between the COUNTS around it.

    It is that of the smallest of COUNTS if this is enough, and of twice the largest if that is not.
    """
    x = [*np.log2(COUNTS), np.log2(2 * COUNTS[-1])]
    place = next((i for i, one in enumerate(success) if one >= ENOUGH), len(COUNTS))
    if place in (0, len(COUNTS)):
        return float(x[place])
    low, high = success[place - 1 : place + 1]
    return float(x[place - 1] + (x[place] - x[place - 1]) * (ENOUGH - low) / (high - low))


_THIRD = "all weights, pre-trained, need a third of the demonstrations of scratch, or fewer"
EXPERIMENT = Experiment(
    name="posttraining",
    title="E10. Demonstrations of a new task, from pre-trained weights and from scratch",
    asked="The paper takes 5 to 100 hours for a task and leaves open how much is needed; the notes on it"
    " (E10) expect a third of what training from scratch needs.",
    question="How many demonstrations does a new task need, from pre-trained weights and from scratch?"
    " Is it enough to train the action expert, or low-rank updates?",
    design="Pre-training takes 200 demonstrations each of three routes round the obstacle. The new task"
    " is a fourth route, which its prompt names, with 2, 3, 4 or 8 demonstrations. From scratch"
    " there are 1,500 steps, so that steps are not what it lacks; from pre-trained weights 400, of"
    " all weights, of the action expert and the projections alone, or of low-rank updates (rank 4) of"
    " both experts and the projections. A method's own arm pools the four numbers.",
    limits="The new task is close to the old ones, and the robot is the same. The numbers of"
    " demonstrations were chosen after pilots on other seeds. Statistics that normalise states and"
    " actions are those of the few demonstrations. No method's rate of learning was tuned.",
    trainings=(PRETRAINED, *(one for arms in ARMS.values() for one in arms.values())),
    measure=tuple(partial(measure, method) for method in METHODS),
    quantities={
        **worlds.QUANTITIES,
        "log2 needed": "log2 of the demonstrations with which 80% succeed; that of"
        f" {COUNTS[0]} where these are enough, of {2 * COUNTS[-1]} where {COUNTS[-1]} are not",
    },
    primary="gap",
    told=("success", "log2 needed"),
    pairs=(
        Pair("all weights", "scratch"),
        Pair("expert only", "all weights"),
        Pair("LoRA", "all weights"),
        *(Pair(_arm("all weights", count), _arm("scratch", count)) for count in COUNTS),
    ),
    expected=(Expected(_THIRD, "log2 needed", "all weights", "scratch", high=-float(np.log2(3))),),
    draw=partial(
        figures.draw_by_count, methods=METHODS, counts=COUNTS, quantities=("gap", "success")
    ),
    seconds=350.0,
)
