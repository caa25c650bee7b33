"""Holds the trainings that several experiments share: a way round an obstacle, by two sides or one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pi0_jax.data.rows import Dataset
from pi0_jax.lab import data, worlds
from pi0_jax.lab.runs import Training

DEMONSTRATIONS = 200

# For the pages of experiments that were measured before and after.
CHANGED = (
    " The primary quantity was clearance when these seeds were first measured. It was changed to the"
    " margin afterwards, because clearance also rewards a point that never arrives, so the choice was"
    " not blind to these seeds; the differences of clearance are told beside."
)


def _write(name: str, sides: tuple[int, ...], data_dir: Path, seed: int) -> Sequence[Dataset]:
    states, actions, _ = worlds.demonstrations(DEMONSTRATIONS, seed, sides)
    settings = {"seed": seed, "sides": list(sides), "episodes": DEMONSTRATIONS}
    return [data.write(data_dir, name, worlds.RECORD, states, actions, worlds.PROMPT, settings)]


TWO_SIDES = Training("two_sides", partial(_write, "two_sides", (1, -1)), {})
ONE_SIDE = Training("one_side", partial(_write, "one_side", (1,)), {})
