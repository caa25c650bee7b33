"""Holds the experiments, by name. A new one is a file here and a line below."""

from pi0_jax.lab.experiments import euler, execution, generation, loss
from pi0_jax.lab.plan import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in (
        generation.EXPERIMENT,
        execution.EXPERIMENT,
        euler.EXPERIMENT,
        loss.EXPERIMENT,
    )
}
