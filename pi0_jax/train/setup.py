"""This file makes from a config what the loop calls: the rows, the state and the validation."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pi0_jax import sharding
from pi0_jax.checkpoints import RunCheckpoints
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import Pi0
from pi0_jax.policy_config import trainable_part
from pi0_jax.preprocess import Layout
from pi0_jax.train.config import RunConfig
from pi0_jax.train.initial import state_from_weights
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.placement import abstract_run_state, jit_init, make_model, step_options
from pi0_jax.train.step import TrainState, validation_step
from pi0_jax.train.validate import ValidationStep

VALIDATION_DRAWS = 4


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of the global batch that this process's devices hold, in ascending order."""
    parts = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted(
        {row for part in parts if part is not None for row in range(*part[0].indices(batch_size))}
    )


def jitted_validation_step(
    run: RunConfig, layout: Layout, model: Pi0, mesh: Mesh
) -> ValidationStep:
    """Returns the validation step of a run, jitted; its results are whole on every device."""
    step = partial(
        validation_step,
        model=model,
        options=step_options(run, layout),
        draws=VALIDATION_DRAWS,
        num_steps=run.sampling_steps,
    )
    return jax.jit(step, out_shardings=sharding.replicated(mesh))


def initial_state(
    run: RunConfig, mesh: Mesh, checkpoints: RunCheckpoints, latest: int | None
) -> TrainState:
    """Returns the state with which a run begins or resumes, created where it will live.

    It is that of checkpoint `latest`; else a fresh one, with starting weights where the run has
    them.

    Args:
        run: the run's config.
        mesh: the devices.
        checkpoints: the run's checkpoints.
        latest: the step to resume from; None begins anew.

    Raises:
        InputError: `restore` or `state_from_weights` raise it; or a number of the checkpoint is not
            finite.
    """
    if latest is not None:
        state = checkpoints.restore(latest, abstract_run_state(run, mesh))
        _check_finite(state, mesh, f"checkpoint of step {latest}")
        return state
    if run.initial_weights:
        return state_from_weights(run, mesh)
    return jit_init(make_model(run, mesh), make_optimizer(run), mesh, trainable_part(run))(
        jax.random.key(run.seed)
    )


def _check_finite(state: TrainState, mesh: Mesh, where: str) -> None:
    """Raises InputError for the first leaf of a state that is not finite."""
    numbers = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    all_finite = jax.jit(
        lambda leaves: {path: jnp.isfinite(leaf).all() for path, leaf in leaves.items()},
        out_shardings=sharding.replicated(mesh),
    )
    for path, finite in jax.device_get(all_finite(numbers)).items():
        if not finite:
            raise InputError(f"{where}: {path}: expected finite numbers, found NaN or infinite")
