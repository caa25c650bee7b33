"""Holds the experiments, by name. A new one is a file here and a line below."""

from pi0_jax.lab.experiments import (
    embodiments,
    euler,
    execution,
    generation,
    history,
    loss,
    posttraining,
    recovery,
    robustness,
    time_density,
    transfer,
    weighting,
    whoami,
)
from pi0_jax.lab.plan import Experiment

_MODULES = (
    *(generation, execution, euler, loss, weighting, transfer, posttraining, recovery),
    *(time_density, history, robustness, embodiments, whoami),
)
EXPERIMENTS: dict[str, Experiment] = {one.EXPERIMENT.name: one.EXPERIMENT for one in _MODULES}
