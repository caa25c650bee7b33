"""The training step is pure functions of state and batch: no files, no clock, no loop.

Randomness is keyed by (seed, step, row). So the same row of the same step draws the same noise,
time and augmentation wherever it runs.
Axes: B batch, K draws, H horizon, D action dimension.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32, Integer, Key, Shaped, UInt32

from pi0_jax import flow, preprocess
from pi0_jax.models import lora
from pi0_jax.models.layers import Constrain
from pi0_jax.models.pi0 import Pi0
from pi0_jax.models.sampling import apply, sample
from pi0_jax.models.trainable import EVERYTHING, Trainable, as_stored, trained_part, with_trained
from pi0_jax.observation import Observation, TrainBatch
from pi0_jax.train.optimizer import Optimizer

# It stands in place of a step's number, so that randomness is the same in every validation.
VALIDATION = 2**32 - 1


class TrainState(NamedTuple):
    """Holds what a step changes.

    The fields are arrays. Their shapes or shardings may stand in their places, hence `Any`.

    Attributes:
        step: the steps done, and so the number of the next batch.
        params: the published tree, whole.
        ema: the exponential moving average of what is trained, and of nothing else, in the tree of
            trainable.py; {} where none is kept.
        opt_state: the optimizer's state, of what is trained.
        skipped: the number of batches passed over because their loss or gradient was not finite;
            one over the limit halts the state.
        factors: LoRA's factors (models/lora.py), or {}.
    """

    step: Int32[Any, ""]
    params: Any
    ema: Any
    opt_state: Any
    skipped: Int32[Any, ""]
    factors: Any


class Weights(NamedTuple):
    """Holds the weights that a model runs."""

    params: Any  # the published tree
    factors: Any  # LoRA's factors, or {}


class StepOptions(NamedTuple):
    """Says what a step does beside the model and the optimizer; static."""

    layout: preprocess.Layout  # how images and states are read
    draws: int  # K, the draws of noise and time for each observation
    augment: bool  # whether images are cropped, turned and recoloured at random
    real_dims_only: bool  # whether the loss counts only the action dimensions that a robot has
    mask_past_end: bool  # whether steps past an episode's end are left out of the loss
    ema_decay: float  # of the moving average
    trainable: Trainable = EVERYTHING  # which parameters are trained
    datasets: int = 1  # in the mixture
    skip_nonfinite: int = 0  # the number of batches whose loss or gradient may be not finite
    accumulate: int = 1  # parts of the batch that run one after the other; gradients are summed
    time_density: flow.TimeDensity = "pi0"  # with which times are drawn


def init_state(
    key: Key[Array, ""],
    model: Pi0,
    optimizer: Optimizer,
    trainable: Trainable = EVERYTHING,
) -> TrainState:
    """Returns the state of a new run, whose parameters and LoRA's factors `key` draws."""
    return state_from(model.init(key, method=Pi0.declare)["params"], key, optimizer, trainable)


def state_from(
    params: Any,
    key: Key[Array, ""],
    optimizer: Optimizer,
    trainable: Trainable = EVERYTHING,
) -> TrainState:
    """Returns the state in which a run begins that starts from these parameters.

    Args:
        params: the published tree, float32.
        key: draws LoRA's factors.
        optimizer: for the tree of what is trained.
        trainable: which parameters are trained.
    """
    factors = lora.init(jax.random.fold_in(key, 1), params, trainable.lora)
    trained = trained_part(params, factors, trainable)
    zero, ema = jnp.zeros((), jnp.int32), trained if trainable.averaged else {}
    stored = as_stored(params, trainable)
    return TrainState(zero, stored, ema, optimizer.init(trained), skipped=zero, factors=factors)


def averaged(state: TrainState) -> Weights:
    """Returns the weights of the moving average, with what is not trained as it is.

    Without an average it returns the present weights.
    """
    if not state.ema:
        return Weights(state.params, state.factors)
    return Weights(*with_trained(state.params, state.ema))


def step_key(seed: int | UInt32[Array, ""], step: Integer[Array, ""]) -> Key[Array, ""]:
    """Returns the key of a step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def row_keys(key: Key[Array, ""], rows: Int32[Array, " B"]) -> Key[Array, "B 2"]:
    """Returns two keys for each row, made of the step's key."""
    return jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(rows)


def draw_noise_and_time(
    keys: Key[Array, " B"], *, draws: int, horizon: int, action_dim: int, density: flow.TimeDensity
) -> tuple[Float32[Array, "B {draws} {horizon} {action_dim}"], Float32[Array, "B {draws}"]]:
    """Draws standard normal noise and times, `draws` of each for every row, by the row's key."""

    def one(key: Key[Array, ""]) -> tuple[Float32[Array, "K H D"], Float32[Array, " K"]]:
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (draws, horizon, action_dim))
        return noise, flow.sample_time(time_key, (draws,), density)

    return jax.vmap(one)(keys)


def sample_losses(
    weights: Weights,
    batch: TrainBatch,
    observation: Observation,
    keys: Key[Array, " B"],
    *,
    model: Pi0,
    options: StepOptions,
    draws: int,
) -> Float32[Array, "B {draws}"]:
    """Computes the flow loss of every sample and draw.

    Args:
        weights: the model's weights.
        batch: its targets are used: actions, valid steps and real dimensions.
        observation: the batch's observations, as the model takes them.
        keys: one for each row, for noise and time.
        model: the model.
        options: says which steps and dimensions count.
        draws: K.
    """
    actions, valid, dims = batch.targets
    horizon, action_dim = actions.shape[1:]
    noise, time = draw_noise_and_time(
        keys, draws=draws, horizon=horizon, action_dim=action_dim, density=options.time_density
    )
    if options.real_dims_only:
        noise = flow.mask_dims(noise, dims)

    def velocity(
        x_t: Float32[Array, "B K H D"], t: Float32[Array, "B K"]
    ) -> Float32[Array, "B K H D"]:
        return apply(model, weights.params, weights.factors, Pi0.velocity, observation, x_t, t)

    return flow.loss(
        velocity,
        actions,
        noise,
        time,
        step_mask=valid if options.mask_past_end else None,
        dim_mask=dims if options.real_dims_only else None,
    )


def train_step(
    state: TrainState,
    batch: TrainBatch,
    seed: int | UInt32[Array, ""],
    *,
    model: Pi0,
    optimizer: Optimizer,
    options: StepOptions,
) -> tuple[TrainState, dict[str, Array]]:
    """Runs one update, or none: a loss or gradient that is not finite changes no parameter.

    An example with options.skip_nonfinite = 1, where batches 2 and 5 are not finite:

        batch        0  1  2  3  4  5  6
        state.step   1  2  3  4  5  5  5      after the step
        skipped      0  0  1  1  1  2  2      after the step

    `state.step` counts the steps done. At one bad batch too many the state halts: it stays as it is
    whatever comes, so that nobody needs to look at once.

    Args:
        state: the state before the step.
        batch: the global batch, on the devices.
        seed: keys all random numbers. It is not static, so that runs which differ in it alone share
            one compiled program.
        model: static.
        optimizer: static.
        options: static.

    Returns:
        The new state, and metrics: loss, gradient_norm and parameter_norm (of what is trained) are
        float32[]. row_loss is float32[B]. dataset_loss is float32[datasets], NaN where the batch
        holds none of a dataset. skipped is int32[] and halted is bool[], both after the step.
    """
    trained = trained_part(state.params, state.factors, options.trainable)
    key = step_key(seed, state.step)
    gradients = partial(
        batch_gradient, trained, params=state.params, key=key, model=model, options=options
    )
    if options.accumulate == 1:
        loss, row_loss, gradient = gradients(batch)
    else:
        loss, row_loss, gradient = _accumulated(gradients, trained, batch, model, options)
    gradient_norm = optax.tree.norm(gradient)
    running = state.skipped <= options.skip_nonfinite
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    skipped = state.skipped + (running & ~finite)
    halted = skipped > options.skip_nonfinite

    # Parameters read the moments that are kept (before they are rounded), and the average the
    # parameters that are kept. If the old ones were kept at the end only, XLA would read moments and
    # gradients twice.
    taken = running & finite
    moments = _new_if(
        taken,
        lambda old: optimizer.moments(gradient, gradient_norm, old),
        optimizer.unrounded(state.opt_state),
    )
    updated = _new_if(taken, partial(optimizer.step, moments), trained)
    opt_state = optimizer.rounded(moments)
    ema = {}
    if options.trainable.averaged:
        rate = 1.0 - options.ema_decay
        ema = _new_if(taken, lambda old: optax.incremental_update(updated, old, rate), state.ema)
    metrics = {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "parameter_norm": optax.tree.norm(updated),
        "row_loss": row_loss,
        "dataset_loss": _mean_by_dataset(row_loss, batch.frames.dataset, options.datasets),
        "skipped": skipped,
        "halted": halted,
    }
    params, factors = with_trained(state.params, updated)
    return TrainState(state.step + ~halted, params, ema, opt_state, skipped, factors), metrics


def _new_if(taken: Bool[Array, ""], new: Callable[[Any], Any], old: Any) -> Any:
    """Returns new(old) where `taken`, else `old`.

    XLA for CPUs has no fusion with several results. It would compute what is new again wherever it
    is read, from old arrays, and copy these before they are overwritten. A branch ends a fusion.
    Elsewhere a branch would copy, and a choice is part of the fusion.
    """

    def branch() -> Any:
        return jax.lax.cond(taken, new, lambda old: old, old)

    def choice() -> Any:
        return jax.tree.map(partial(jnp.where, taken), new(old), old)

    return jax.lax.platform_dependent(cpu=branch, default=choice)


def batch_gradient(
    trained: Any,
    batch: TrainBatch,
    *,
    params: Any,
    key: Key[Array, ""],
    model: Pi0,
    options: StepOptions,
) -> tuple[Float32[Array, ""], Float32[Array, " B"], Any]:
    """Computes the mean loss, the loss of every row, and the mean loss's gradient.

    Args:
        trained: the tree of what is trained (trainable.py), for which the gradient is.
        batch: on the devices.
        params: the published tree, from which all else is taken.
        key: of `step_key`.
        model: static.
        options: static.
    """
    keys = row_keys(key, batch.rows)
    observation = preprocess.device(
        batch.observation, options.layout, augmentation_keys=keys[:, 1] if options.augment else None
    )

    def mean_loss(trained: Any) -> tuple[Float32[Array, ""], Float32[Array, " B"]]:
        weights = Weights(*with_trained(params, trained))
        draws = options.draws
        losses = sample_losses(
            weights, batch, observation, keys[:, 0], model=model, options=options, draws=draws
        )
        return jnp.mean(losses), jnp.mean(losses, axis=1)

    (loss, row_loss), gradient = jax.value_and_grad(mean_loss, has_aux=True)(trained)
    return loss, row_loss, gradient


def _accumulated(
    gradients: Callable[[TrainBatch], tuple[Float32[Array, ""], Float32[Array, " B"], Any]],
    trained: Any,
    batch: TrainBatch,
    model: Pi0,
    options: StepOptions,
) -> tuple[Float32[Array, ""], Float32[Array, " B"], Any]:
    """Computes `batch_gradient` of the whole batch, part after part; it sums in float32."""
    count = options.accumulate

    def add(
        sums: tuple[Float32[Array, ""], Any], part: TrainBatch
    ) -> tuple[tuple[Float32[Array, ""], Any], Float32[Array, " B"]]:
        loss, row_loss, gradient = gradients(part)
        return jax.tree.map(jnp.add, sums, (loss, gradient)), row_loss

    zeros = jnp.zeros(()), jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), trained)
    sums, row_losses = jax.lax.scan(add, zeros, in_parts(batch, count, model.options.constrain))
    loss, gradient = jax.tree.map(lambda total: total / count, sums)
    # float32[count, B / count] -> float32[B], the order of rows that `in_parts` has cut.
    return loss, jnp.moveaxis(row_losses, 0, 1).reshape(-1), gradient


def _mean_by_dataset(
    losses: Float32[Array, " B"], dataset: Int32[Array, " B"], datasets: int
) -> Float32[Array, " {datasets}"]:
    """Returns the mean of `losses` over the rows of each dataset; NaN where there are none."""
    sums, counts = (
        jax.ops.segment_sum(values, dataset, datasets) for values in (losses, jnp.ones_like(losses))
    )
    return sums / counts


def in_parts(batch: Any, count: int, constrain: Constrain) -> Any:
    """Cuts [B, ...] into [count, B / count, ...].

    Every device has rows of its own in every part, so that no rows change hands:

        device        0  0  0  0 | 1  1  1  1
        row           0  1  2  3 | 4  5  6  7
        part of two   0  1  0  1 | 0  1  0  1
    """

    def cut(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        parts = jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
        return constrain(parts, (None, "batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(cut, batch)


def validation_step(
    weights: Weights,
    batch: TrainBatch,
    *,
    model: Pi0,
    options: StepOptions,
    seed: int,
    draws: int,
    num_steps: int,
) -> dict[str, Array]:
    """Computes the flow loss at noise and times fixed for each row, and samples actions.

    `draws` is the number of noises and times for each row, `num_steps` that of Euler steps.

    Returns:
        `loss`, float32[B], and `actions`, float32[B, H, D] in model units.
    """
    keys = row_keys(step_key(seed, jnp.uint32(VALIDATION)), batch.rows)
    observation = preprocess.device(batch.observation, options.layout)
    losses = sample_losses(
        weights, batch, observation, keys[:, 0], model=model, options=options, draws=draws
    )
    shape = batch.targets.actions.shape[1:]
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys[:, 1])
    dims = batch.targets.dims if options.real_dims_only else None
    actions = sample(
        weights.params,
        observation,
        noise,
        model=model,
        num_steps=num_steps,
        dim_mask=dims,
        factors=weights.factors,
    )
    return {"loss": jnp.mean(losses, axis=1), "actions": actions}
