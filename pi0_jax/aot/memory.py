"""Tells from shapes alone how much memory a policy's weights and a run's training state take."""

import math
from collections.abc import Mapping

import jax

from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.models.sampling import storage_dtype
from pi0_jax.policy_config import model_config
from pi0_jax.train.config import RunConfig
from pi0_jax.train.footprint import footprint
from pi0_jax.train.placement import run_mesh

_GB = 1e9
_PARTS = ("parameters", "gradients", "optimizer state", "moving average", "sum")


def policy_bytes(run: RunConfig, dtype: str) -> int:
    """Returns the bytes of a policy's weights when it computes in a dtype."""
    shapes = flatten(parameter_shapes(model_config(run)))
    return sum(
        math.prod(leaf.shape) * storage_dtype(path, dtype).itemsize for path, leaf in shapes.items()
    )


def table(policy: RunConfig, training: Mapping[str, RunConfig]) -> str:
    """Returns a Markdown table of what one device holds.

    Args:
        policy: the run whose model is used for inference, in float32 and in bfloat16.
        training: the name of a run -> the run.
    """
    titles = ["what", "parameters trained", *(f"{part}, GB" for part in _PARTS)]
    rows = [titles, ["---"] * len(titles)]
    for dtype in ("float32", "bfloat16"):
        held = f"{policy_bytes(policy, dtype) / _GB:.1f}"
        rows.append([f"inference, {dtype}", "none", held, "", "", "", held])
    for name, run in training.items():
        state = footprint(run, run_mesh(run, jax.devices()[:1]))
        parts = (state.weights, state.gradients, state.optimizer, state.moving_average, state.total)
        rows.append([name, f"{state.trained:,}", *(f"{part / _GB:.1f}" for part in parts)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
