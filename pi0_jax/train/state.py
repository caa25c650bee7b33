"""A run's mesh, model, state and step are made here from its config.

Shapes come first: with `abstract_run_state` the step can be compiled, and the memory of a device be
counted, before anything is allocated, also for devices that are not here (aot/).
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pi0_jax import sharding
from pi0_jax.errors import InputError
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0
from pi0_jax.models.trainable import EVERYTHING, Trainable, trained_part
from pi0_jax.observation import TrainBatch
from pi0_jax.policy_config import model_config, trainable_part
from pi0_jax.preprocess import Layout
from pi0_jax.train.chips import matmul_flops, peak_flops
from pi0_jax.train.config import RunConfig
from pi0_jax.train.optimizer import Optimizer, make_optimizer
from pi0_jax.train.step import StepOptions, TrainState, init_state, train_step

# ---- the mesh and the model


def run_mesh(run: RunConfig, devices: list[jax.Device]) -> Mesh:
    """Makes the run's mesh.

    Raises:
        InputError: the devices do not make the run's mesh, or the mesh does not divide its batch.
    """
    mesh = sharding.make_mesh(
        data=run.mesh.data, fsdp=run.mesh.fsdp, tensor=run.mesh.tensor, devices=devices
    )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, count, parts in (
        ("data x fsdp", f"{shards}", shards),
        ("accumulate x data x fsdp", f"{run.accumulate} x {shards}", shards * run.accumulate),
    ):
        if run.batch_size % parts:
            raise InputError(
                f"config.batch_size {run.batch_size} is not a multiple of {name} = {count}"
            )
    return mesh


def make_model(run: RunConfig, mesh: Mesh) -> Pi0:
    """Returns the run's model, which splits activations over the mesh and gathers weights in use."""
    on_tpus = mesh.devices.flat[0].platform == "tpu"
    options = ComputeOptions(
        dtype=jnp.dtype(run.dtype),
        scan_layers=run.scan_layers,
        remat=run.remat,
        # This saves memory traffic, and there it costs hardly a product (pieces.py).
        in_pieces=on_tpus and run.remat == "full" and mesh.shape["tensor"] == 1,
        constrain=sharding.constrain_on(mesh),
        gather=sharding.gather_on(mesh),
        lora=run.lora,
    )
    return Pi0(model_config(run), options)


# ---- the state


def abstract_state(
    model: Pi0,
    optimizer: Optimizer,
    mesh: Mesh,
    trainable: Trainable = EVERYTHING,
) -> TrainState:
    """Returns the state as ShapeDtypeStructs that carry their shardings; it allocates nothing.

    Parameters, LoRA's factors, EMA and optimizer moments are placed by the parameter rules.
    Counters are whole on every device.
    """
    create = partial(init_state, model=model, optimizer=optimizer, trainable=trainable)
    shapes = jax.eval_shape(create, jax.random.key(0))
    whole = sharding.replicated(mesh)
    params = sharding.parameter_shardings(shapes.params, mesh)
    factors = sharding.parameter_shardings(shapes.factors, mesh)
    trained = trained_part(params, factors, trainable)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        shapes.opt_state,
        trained,
        transform_non_params=lambda _: whole,
    )
    ema = trained if trainable.averaged else {}
    shardings = TrainState(whole, params, ema, moments, skipped=whole, factors=factors)
    return sharding.placed(shapes, shardings)


def abstract_run_state(run: RunConfig, mesh: Mesh) -> TrainState:
    """Returns `abstract_state` of a run."""
    return abstract_state(make_model(run, mesh), make_optimizer(run), mesh, trainable_part(run))


def jit_init(
    model: Pi0,
    optimizer: Optimizer,
    mesh: Mesh,
    trainable: Trainable = EVERYTHING,
) -> Callable[[jax.Array], TrainState]:
    """Returns a jitted function key -> TrainState that creates every part where it will live."""
    create = partial(init_state, model=model, optimizer=optimizer, trainable=trainable)
    abstract = abstract_state(model, optimizer, mesh, trainable)
    return jax.jit(create, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))


# ---- the step


def step_options(run: RunConfig, layout: Layout) -> StepOptions:
    """Returns what a run's config says about its step."""
    return StepOptions(
        layout=layout,
        draws=run.draws,
        augment=run.augment,
        real_dims_only=run.loss_dims == "real",
        mask_past_end=run.mask_past_end,
        ema_decay=run.ema_decay,
        datasets=len(run.datasets),
        skip_nonfinite=run.skip_nonfinite,
        accumulate=run.accumulate,
        time_density=run.time_density,
        trainable=trainable_part(run),
    )


def jit_train_step(
    model: Pi0, optimizer: Optimizer, options: StepOptions, state: TrainState
) -> Any:
    """Returns the jitted step (TrainState, TrainBatch, seed) -> (TrainState, metrics).

    It gives up the buffers of the state that goes in. The new state is placed as `state`, which may
    be arrays, or shapes with their shardings.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        partial(train_step, model=model, optimizer=optimizer, options=options),
        donate_argnums=0,
        out_shardings=(shardings, shardings.step),
    )


def trace_step(
    run: RunConfig, layout: Layout, state: TrainState, batch: TrainBatch, mesh: Mesh
) -> jax.stages.Traced:
    """Traces the run's step for a state and a batch: arrays, or shapes with their shardings."""
    step = jit_train_step(
        make_model(run, mesh), make_optimizer(run), step_options(run, layout), state
    )
    return step.trace(state, batch, program_seed(run))


def program_seed(run: RunConfig) -> np.uint32:
    """Returns the seed as an argument of the step, which keys by its 32 lower bits anyway."""
    return np.uint32(run.seed % 2**32)


class CompiledStep(NamedTuple):
    """Holds the compiled training step and what is known about it.

    Attributes:
        step: (TrainState, TrainBatch) -> (TrainState, metrics).
        model_flops: the operations of the model's matrix products, forward and backward, on all
            devices. Products that are computed again (remat) are counted once.
        text: the memory that one device needs, and the operations, for people.
    """

    step: Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]
    model_flops: int
    text: str

    def speed(self, steps_per_second: float) -> dict[str, float]:
        """Returns the model's speed as metrics.

        Returns:
            `model_tflops_per_second`, TFLOP/s on all devices together. Where the devices' peak is
            known also `model_flops_utilisation`, the share of the peak.
        """
        flops, peak = self.model_flops * steps_per_second, peak_flops(jax.devices()[0].device_kind)
        speed = {"model_tflops_per_second": flops / 1e12}
        if peak is not None:
            speed["model_flops_utilisation"] = flops / (peak * jax.device_count())
        return speed


def compile_step(
    run: RunConfig, layout: Layout, state: TrainState, batch: TrainBatch, mesh: Mesh
) -> CompiledStep:
    """Compiles the step before the first batch is trained on, so that its memory is told early."""
    traced = trace_step(run, layout, state, batch, mesh)
    # The same step without remat tells how many operations the model itself has.
    keeping = dataclasses.replace(run, remat="none")
    plain = traced if run.remat == "none" else trace_step(keeping, layout, state, batch, mesh)
    flops, model_flops = matmul_flops(traced.jaxpr), matmul_flops(plain.jaxpr)
    again = f", and {flops / model_flops - 1:.0%} of them once more" if flops > model_flops else ""
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    text = (
        f"the step as compiled, MB per device: arguments {memory.argument_size_in_bytes / 1e6:,.1f},"
        f" outputs beside them {outputs / 1e6:,.1f}, temporaries"
        f" {memory.temp_size_in_bytes / 1e6:,.1f};"
        f" {model_flops / 1e12:,.4g} TFLOP of matrix products{again}"
    )
    seed = program_seed(run)
    return CompiledStep(lambda state, batch: compiled(state, batch, seed), model_flops, text)


# ---- memory


class Footprint(NamedTuple):
    """Holds how many parameters a run has, and the bytes that one device holds of its state."""

    parameters: int  # the number of all parameters
    trained: int  # the number of those that are trained
    weights: int  # bytes of all parameters, LoRA's factors among them
    gradients: int
    optimizer: int
    moving_average: int

    @property
    def total(self) -> int:
        """Returns the sum of the bytes."""
        return self.weights + self.gradients + self.optimizer + self.moving_average

    def lines(self) -> list[str]:
        """Returns two lines for people: parameters, total and trained; megabytes per device."""
        parts = {
            "parameters": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "moving average": self.moving_average,
        }
        sizes = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in parts.items())
        return [
            f"{self.parameters:,} parameters, of which {self.trained:,} are trained",
            f"MB per device: {sizes}; {self.total / 1e6:,.1f} in all",
        ]


def footprint(run: RunConfig, mesh: Mesh) -> Footprint:
    """Returns what a run's state takes on a mesh, from shapes alone.

    Gradients are float32, like what is trained. Where the batch is run in parts there are two
    copies of them: the sum, and the gradients of the part.
    """
    state = abstract_run_state(run, mesh)
    weights = state.params, state.factors
    trained = trained_part(*weights, trainable_part(run))
    copies = 1 if run.accumulate == 1 else 2
    return Footprint(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights)),
        trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained)),
        weights=bytes_per_device(weights),
        gradients=copies * bytes_per_device(trained),
        optimizer=bytes_per_device(state.opt_state),
        moving_average=bytes_per_device(state.ema),
    )


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@contextlib.contextmanager
def named_out_of_memory(run: RunConfig) -> Iterator[None]:
    """Turns XLA's lack of memory, at compiling or running, into an InputError.

    Its message has XLA's words, and says which settings of the run need less.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        found = str(error).splitlines()[0].rstrip(".")
        stats = jax.local_devices()[0].memory_stats()  # None on CPUs
        if stats and "bytes_limit" in stats:
            found += f"; a device has {stats['bytes_limit']:,} bytes"
        remat = "" if run.remat == "full" else f", remat 'full' (is {run.remat!r})"
        raise InputError(
            f"out of memory: {found}. To need less for activations: config.accumulate above"
            f" {run.accumulate}{remat}, batch_size below {run.batch_size}; for parameters and"
            f" optimizer: more devices in mesh.fsdp (is {run.mesh.fsdp}), frozen or lora, bfloat16"
            " as first_moment_dtype or frozen_dtype"
        ) from error
