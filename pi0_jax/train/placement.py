"""A run's model, state and step are placed on a mesh of devices.

The loop runs the step; ahead/ compiles it for other devices.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pi0_jax import sharding
from pi0_jax.errors import InputError
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0
from pi0_jax.models.trainable import EVERYTHING, Trainable, trained_part
from pi0_jax.policy_config import model_config, trainable_part
from pi0_jax.preprocess import Layout
from pi0_jax.train.config import RunConfig
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.step import StepOptions, TrainState, init_state, train_step


def run_mesh(run: RunConfig, devices: list[jax.Device]) -> Mesh:
    """Makes the run's mesh.

    Raises:
        InputError: the devices do not make the run's mesh, or the mesh does not divide its batch.
    """
    mesh = sharding.make_mesh(
        data=run.mesh.data, fsdp=run.mesh.fsdp, tensor=run.mesh.tensor, devices=devices
    )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if run.batch_size % shards:
        raise InputError(
            f"config.batch_size {run.batch_size} is not a multiple of data x fsdp = {shards}"
        )
    if run.batch_size % (shards * run.accumulate):
        parts = f"accumulate x data x fsdp = {run.accumulate} x {shards}"
        raise InputError(f"config.batch_size {run.batch_size} is not a multiple of {parts}")
    return mesh


def make_model(run: RunConfig, mesh: Mesh) -> Pi0:
    """Returns the run's model, whose activations are split over the mesh.

    Its weights are gathered where they are used.
    """
    options = ComputeOptions(
        dtype=jnp.dtype(run.dtype),
        scan_layers=run.scan_layers,
        remat=run.remat,
        constrain=sharding.constrain_on(mesh),
        gather=sharding.gather_on(mesh),
        lora=run.lora,
    )
    return Pi0(model_config(run), options)


def step_options(run: RunConfig, layout: Layout) -> StepOptions:
    """Returns what a run's config says about its step."""
    return StepOptions(
        seed=run.seed, layout=layout, draws=run.draws, augment=run.augment, real_dims_only=run.loss_dims == "real",
        mask_past_end=run.mask_past_end, ema_decay=run.ema_decay, datasets=len(run.datasets), skip_nonfinite=run.skip_nonfinite,
        accumulate=run.accumulate, trainable=trainable_part(run),
    )  # fmt: skip


def state_shardings(
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trainable: Trainable = EVERYTHING,
) -> TrainState:
    """Returns the shardings of a state.

    Parameters, LoRA's factors, EMA and optimizer moments are placed by the parameter rules.
    Counters are whole on every device.
    """
    params, factors = (
        sharding.parameter_shardings(tree, mesh) for tree in (abstract.params, abstract.factors)
    )
    trained, whole = trained_part(params, factors, trainable), sharding.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, where: where,
        abstract.opt_state,
        trained,
        transform_non_params=lambda _: whole,
    )
    return TrainState(
        whole,
        params,
        trained if trainable.averaged else {},
        moments,
        skipped=whole,
        factors=factors,
    )


def abstract_state(
    model: Pi0,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trainable: Trainable = EVERYTHING,
) -> TrainState:
    """Returns the state as ShapeDtypeStructs that carry their shardings; it allocates nothing."""
    shapes = jax.eval_shape(
        partial(init_state, model=model, optimizer=optimizer, trainable=trainable),
        jax.random.key(0),
    )
    return sharding.placed(shapes, state_shardings(shapes, optimizer, mesh, trainable))


def abstract_run_state(run: RunConfig, mesh: Mesh) -> TrainState:
    """Returns `abstract_state` of a run."""
    return abstract_state(make_model(run, mesh), make_optimizer(run), mesh, trainable_part(run))


def jit_init(
    model: Pi0,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trainable: Trainable = EVERYTHING,
) -> Any:
    """Returns a jitted function key -> TrainState that creates every part where it will live."""
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh, trainable)
    )
    return jax.jit(
        partial(init_state, model=model, optimizer=optimizer, trainable=trainable),
        out_shardings=shardings,
    )


def jit_train_step(
    model: Pi0, optimizer: optax.GradientTransformation, options: StepOptions, state: TrainState
) -> Any:
    """Returns the jitted step (TrainState, TrainBatch) -> (TrainState, metrics).

    Args:
        model: the model.
        optimizer: the optimizer.
        options: what the step does beside them.
        state: arrays or shapes with their shardings, by which the new state is placed.

    Returns:
        The step. It gives up the buffers of the state that goes in.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        partial(train_step, model=model, optimizer=optimizer, options=options),
        donate_argnums=0,
        out_shardings=(shardings, shardings.step),
    )


def jit_run_step(run: RunConfig, layout: Layout, model: Pi0, state: TrainState) -> Any:
    """Returns `jit_train_step` with everything that a run's config says.

    `model` may differ from the run's in how it is compiled.
    """
    return jit_train_step(model, make_optimizer(run), step_options(run, layout), state)
