"""Holds the experiments, by name. A new one is a file here and a name below."""

from pi0_jax.lab.experiments import (
    euler,
    execution,
    generation,
    history,
    language,
    loss,
    posttraining,
    recovery,
    robots,
    robustness,
    time_density,
    transfer,
    weighting,
)
from pi0_jax.lab.plan import Experiment

_ALL = (
    *(one.EXPERIMENT for one in (generation, execution, euler, loss, time_density)),
    *(one.EXPERIMENT for one in (weighting, transfer, posttraining, recovery)),
    *(robots.EMBODIMENTS, robots.WHOAMI),
    *(one.EXPERIMENT for one in (language, history, robustness)),
)
EXPERIMENTS: dict[str, Experiment] = {one.name: one for one in _ALL}
