"""From a config to what runs on the devices: model, sharded state, compiled steps, and which rows of a batch are this process's."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pi0_jax import sharding
from pi0_jax.checkpoints import RunCheckpoints
from pi0_jax.config import RunConfig, model_config
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import TrainBatch
from pi0_jax.preprocess import Layout
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.step import StepOptions, TrainState, init_state, train_step, validation_step
from pi0_jax.train.validate import ValidationStep

VALIDATION_DRAWS = 4

TrainStep = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]


class Steps(NamedTuple):
    train: TrainStep
    validation: ValidationStep


def run_mesh(run: RunConfig) -> Mesh:
    """Over the devices of all processes. Raises InputError if they do not make the mesh, or the mesh does not divide the batch."""
    mesh = sharding.make_mesh(data=run.mesh.data, fsdp=run.mesh.fsdp, tensor=run.mesh.tensor)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if run.batch_size % shards:
        raise InputError(f"config.batch_size {run.batch_size} is not a multiple of data x fsdp = {shards}")
    return mesh


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of the global batch that this process's devices hold, ascending."""
    parts = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in parts for row in range(*part.indices(batch_size))})


def make_model(run: RunConfig, mesh: Mesh) -> Pi0:
    return Pi0(model_config(run), jnp.dtype(run.dtype), run.scan_layers, run.remat, sharding.constrain_on(mesh))


def jitted_steps(run: RunConfig, layout: Layout, model: Pi0, shardings: TrainState, mesh: Mesh) -> Steps:
    options = StepOptions(
        run.seed, layout, run.draws, run.augment, run.loss_dims == "real", run.mask_past_end, run.ema_decay,
        datasets=len(run.datasets), skip_nonfinite=run.skip_nonfinite,
    )  # fmt: skip
    whole = sharding.replicated(mesh)
    train = partial(train_step, model=model, optimizer=make_optimizer(run), options=options)
    validation = partial(validation_step, model=model, options=options, draws=VALIDATION_DRAWS, num_steps=run.sampling_steps)
    return Steps(jax.jit(train, donate_argnums=0, out_shardings=(shardings, whole)), jax.jit(validation, out_shardings=whole))


def initial_state(run: RunConfig, model: Pi0, mesh: Mesh, checkpoints: RunCheckpoints, latest: int | None) -> tuple[TrainState, TrainState]:
    """A fresh state, or that of checkpoint `latest`, and its shardings; created where it will live."""
    optimizer = make_optimizer(run)
    create = partial(init_state, model=model, optimizer=optimizer)
    key = jax.random.key(run.seed)
    abstract = jax.eval_shape(create, key)
    shardings = state_shardings(abstract, optimizer, mesh)
    if latest is None:
        return jax.jit(create, out_shardings=shardings)(key), shardings
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    return checkpoints.restore(latest, abstract), shardings


def state_shardings(abstract: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Parameters, EMA and optimizer moments by the parameter rules; counters whole."""
    params = sharding.parameter_shardings(abstract.params, mesh)
    whole = sharding.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, where: where, abstract.opt_state, params, transform_non_params=lambda _: whole
    )
    return TrainState(whole, params, params, moments, whole)
