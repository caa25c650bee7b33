"""Holds the experiments, by name. A new one is a file here and a line below."""

from pi0_jax.lab.experiments import (
    embodiments,
    euler,
    execution,
    generation,
    loss,
    posttraining,
    recovery,
    transfer,
    weighting,
    whoami,
)
from pi0_jax.lab.plan import Experiment

_MODULES = (
    *(generation, execution, euler, loss, weighting, transfer, posttraining, recovery),
    *(embodiments, whoami),
)
EXPERIMENTS: dict[str, Experiment] = {one.EXPERIMENT.name: one.EXPERIMENT for one in _MODULES}
