"""The training step: pure functions of state and batch. No files, no clock, no loop.

Randomness is keyed by (seed, step, row): the same row of the same step draws the same noise, time and augmentation wherever it runs.
Axes: B batch, K draws, H horizon, D action dimension.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pi0_jax import flow, preprocess
from pi0_jax.models.pi0 import Pi0, sample_actions
from pi0_jax.observation import Observation, TrainBatch

VALIDATION = 2**32 - 1  # in place of a step number, for randomness that is the same in every validation


class TrainState(NamedTuple):
    step: jax.Array  # int32[]: steps done, and so the number of the next batch
    params: Any
    ema: Any  # exponential moving average of params
    opt_state: Any
    skipped: jax.Array  # int32[]: batches passed over since their loss or gradient was not finite; one over the limit halts the state


class StepOptions(NamedTuple):
    """What a step does beside the model and the optimizer; static."""

    seed: int
    layout: preprocess.Layout
    draws: int
    augment: bool
    real_dims_only: bool
    mask_past_end: bool
    ema_decay: float
    datasets: int = 1  # of the mixture
    skip_nonfinite: int = 0  # batches of which the loss or gradient may be not finite


def init_state(key: jax.Array, model: Pi0, optimizer: optax.GradientTransformation) -> TrainState:
    params = model.init(key, method="declare")["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), jnp.zeros((), jnp.int32))


def row_keys(seed: int, step: jax.Array, rows: jax.Array) -> jax.Array:
    """One key per row int32[B] of a step."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(jax.random.key(seed), step), rows)


def draw_noise_and_time(keys: jax.Array, *, draws: int, horizon: int, action_dim: int) -> tuple[jax.Array, jax.Array]:
    """float32[B, K, H, D] standard normal noise and float32[B, K] times from a key per row."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise_key, time_key = jax.random.split(key)
        return jax.random.normal(noise_key, (draws, horizon, action_dim)), flow.sample_time(time_key, (draws,))

    return jax.vmap(one)(keys)


def sample_losses(
    params: Any, batch: TrainBatch, observation: Observation, keys: jax.Array, *, model: Pi0, options: StepOptions, draws: int
) -> jax.Array:
    """float32[B, K]: the flow loss of every sample and draw; `keys` hold one key per row for noise and time."""
    actions, valid, dims = batch.targets
    noise, time = draw_noise_and_time(keys, draws=draws, horizon=actions.shape[1], action_dim=actions.shape[2])
    if options.real_dims_only:
        noise = flow.mask_dims(noise, dims)

    def velocity(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return model.apply({"params": params}, observation, x_t, t, method="velocity")

    return flow.loss(
        velocity,
        actions,
        noise,
        time,
        step_mask=valid if options.mask_past_end else None,
        dim_mask=dims if options.real_dims_only else None,
    )


def train_step(
    state: TrainState, batch: TrainBatch, *, model: Pi0, optimizer: optax.GradientTransformation, options: StepOptions
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, or none: a loss or gradient that is not finite changes no parameter.

    batch        0  1  2  3  4  5  6            options.skip_nonfinite = 1; batches 2 and 5 are not finite
    state.step   1  2  3  4  5  5  5            steps done after it: at one too many the state halts, and stays as it is,
    skipped      0  0  1  1  1  2  2            whatever comes, so that nobody needs to look at once

    Metrics, float32[] each but for the rows: loss, gradient_norm, parameter_norm; row_loss float32[B]; dataset_loss
    float32[datasets], NaN where the batch holds none of a dataset; skipped int32[] and halted bool[], as they are after the step.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(row_keys(options.seed, state.step, batch.rows))
    observation = preprocess.device(batch.observation, options.layout, augmentation_keys=keys[:, 1] if options.augment else None)

    def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        losses = sample_losses(params, batch, observation, keys[:, 0], model=model, options=options, draws=options.draws)
        return jnp.mean(losses), jnp.mean(losses, axis=1)

    (loss, row_loss), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    gradient_norm = optax.global_norm(gradient)
    running = state.skipped <= options.skip_nonfinite
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    skipped = state.skipped + (running & ~finite)
    halted = skipped > options.skip_nonfinite

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1.0 - options.ema_decay)
    before = (state.params, state.ema, state.opt_state)
    params, ema, opt_state = jax.tree.map(partial(jnp.where, running & finite), (params, ema, opt_state), before)
    metrics = {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "parameter_norm": optax.global_norm(params),
        "row_loss": row_loss,
        "dataset_loss": _mean_by_dataset(row_loss, batch.frames.dataset, options.datasets),
        "skipped": skipped,
        "halted": halted,
    }
    return TrainState(state.step + ~halted, params, ema, opt_state, skipped), metrics


def _mean_by_dataset(losses: jax.Array, dataset: jax.Array, datasets: int) -> jax.Array:
    """float32[datasets] means of float32[B] `losses` of the rows of each dataset; NaN without any."""
    sums, counts = (jax.ops.segment_sum(values, dataset, datasets) for values in (losses, jnp.ones_like(losses)))
    return sums / counts


def validation_step(
    params: Any, batch: TrainBatch, *, model: Pi0, options: StepOptions, draws: int, num_steps: int
) -> dict[str, jax.Array]:
    """Flow loss at noise and times fixed per row, float32[B], and sampled actions in model units, float32[B, H, D]."""
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(row_keys(options.seed, jnp.uint32(VALIDATION), batch.rows))
    observation = preprocess.device(batch.observation, options.layout)
    losses = sample_losses(params, batch, observation, keys[:, 0], model=model, options=options, draws=draws)
    noise = jax.vmap(lambda key: jax.random.normal(key, batch.targets.actions.shape[1:]))(keys[:, 1])
    dims = batch.targets.dims if options.real_dims_only else None
    actions = sample_actions(params, observation, noise, model=model, num_steps=num_steps, dim_mask=dims)
    return {"loss": jnp.mean(losses, axis=1), "actions": actions}
