"""Measures how fast training steps go on the devices at hand.

They are compared with what the devices reach in large matrix products. It needs no data and no
TensorFlow.
"""

import math
import resource
import statistics
import time
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.matmul import matmul_rate
from pi0_jax.aot.programs import abstract_batch, traced_step
from pi0_jax.errors import InputError
from pi0_jax.freed_memory import SETTLING, give_back_freed_memory
from pi0_jax.models.pi0 import VARIANTS
from pi0_jax.observation import CAMERA_SLOTS, TrainBatch
from pi0_jax.policy_config import model_config, trainable_part
from pi0_jax.train.chips import matmul_flops
from pi0_jax.train.config import RunConfig, from_mapping
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.state import jit_init, make_model, program_seed, run_mesh

WARM_UP = SETTLING  # steps that are not timed

# A variant changes these settings of a config beside its sizes: the full model is measured as it is
# trained on accelerators.
_AS_TRAINED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        variant: dict(
            dtype="bfloat16",
            scan_layers=True,
            remat="full",
            draws=1,
            augment=True,
            loss_dims="padded",
        )
        for variant in ("pi0", "pi05")
    }
)


class TrainSpeed(NamedTuple):
    """Holds the speed of a run's training step, and what it was measured with.

    Attributes:
        device: the devices' kind.
        devices: the number of devices.
        mesh: the devices along each axis.
        parameters: the model's parameters.
        batch: samples in a step.
        draws: draws of noise and time for each sample.
        cameras: cameras of each sample.
        dtype: the compute dtype.
        remat: what the backward pass computes again.
        compile_seconds: the time to compile the step.
        step_seconds: the time of every timed step.
        model_flops: operations of the model's matrix products in a step, forward and backward, on
            all devices.
        flops: the same with what the backward pass computes again.
        matmul_rate: operations per second of large matrix products, on all devices.
        peak_bytes: the most memory of one device since the process began; None where the device
            does not count it.
        resident_bytes: the most resident memory of this process; on a CPU all is in it.
    """

    device: str
    devices: int
    mesh: Mapping[str, int]
    parameters: int
    batch: int
    draws: int
    cameras: int
    dtype: str
    remat: str
    compile_seconds: float
    step_seconds: tuple[float, ...]
    model_flops: int
    flops: int
    matmul_rate: float
    peak_bytes: int | None
    resident_bytes: int

    @property
    def seconds(self) -> float:
        """Returns the seconds of the median step."""
        return statistics.median(self.step_seconds)

    @property
    def samples_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def share(self) -> float:
        """Returns the model's operations over what large matrix products could do in that time."""
        return self.model_flops / self.seconds / self.matmul_rate

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {
            "samples_per_second": self.samples_per_second,
            "share_of_matmul_rate": self.share,
        }


def sized(
    config: Mapping[str, Any], changes: Mapping[str, Any], *, variant: str | None
) -> RunConfig:
    """Returns a config's run with another variant and its usual settings.

    Args:
        config: the config's fields.
        changes: fields that the user has changed; they count more than the variant's settings.
        variant: the model's size; None keeps the config's.
    """
    values = dict(config)
    if variant is not None:
        if variant not in VARIANTS:
            raise InputError(f"--variant={variant}: expected one of {', '.join(VARIANTS)}")
        sizes = VARIANTS[variant]
        values |= dict(
            variant=variant,
            action_dim=sizes.action_dim,
            horizon=sizes.horizon,
            max_tokens=sizes.max_tokens,
        )
        values |= _AS_TRAINED[variant] if variant in _AS_TRAINED else {}
        values |= {name: value for name, value in changes.items() if "." not in name}
    return from_mapping(values)


def benchmark_train(run: RunConfig, *, cameras: int, steps: int) -> TrainSpeed:
    """Compiles the run's step for all devices and times some steps of it, one by one.

    The batch holds random numbers and stays on the devices. Matrix products are measured before and
    after, and the mean counts, because a machine's speed drifts.

    Args:
        run: the run's config.
        cameras: cameras of each sample.
        steps: how many steps are timed.

    Raises:
        InputError: the devices do not divide the mesh or the batch.
    """
    devices, slots = jax.devices(), CAMERA_SLOTS[:cameras]
    mesh = run_mesh(run, devices)
    before = matmul_rate(run.dtype)
    traced = traced_step(run, slots, mesh)
    start = time.perf_counter()
    step = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    state = jit_init(make_model(run, mesh), make_optimizer(run), mesh, trainable_part(run))(
        jax.random.key(run.seed)
    )
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    batch = synthetic_batch(run, slots, mesh)
    times = _time_steps(lambda state: step(state, batch, program_seed(run)), state, steps)
    stats = devices[0].memory_stats()
    return TrainSpeed(
        device=devices[0].device_kind,
        devices=len(devices),
        mesh=dict(mesh.shape),
        parameters=parameters,
        batch=run.batch_size,
        draws=run.draws,
        cameras=cameras,
        dtype=run.dtype,
        remat=run.remat,
        compile_seconds=compile_seconds,
        step_seconds=times,
        model_flops=matmul_flops(traced_step(run, slots, mesh, remat="none").jaxpr),
        flops=matmul_flops(traced.jaxpr),
        matmul_rate=len(devices) * statistics.mean([before, matmul_rate(run.dtype)]),
        peak_bytes=stats["peak_bytes_in_use"] if stats else None,
        resident_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def _time_steps(step: Any, state: Any, steps: int) -> tuple[float, ...]:
    times = []
    give_back_freed_memory()  # as training does
    for number in range(WARM_UP + steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state))
        times.append(time.perf_counter() - start)
        if number < SETTLING:
            give_back_freed_memory()
    return tuple(times[WARM_UP:])


def synthetic_batch(run: RunConfig, slots: tuple[str, ...], mesh: Mesh) -> TrainBatch:
    """Makes random pixels, tokens, states and actions on the devices where they will live.

    Every camera is there, and every dimension is real.
    """
    abstract = abstract_batch(run, slots, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    vocabulary = model_config(run).gemma.vocab_size
    return jax.jit(partial(_random, abstract, vocabulary), out_shardings=shardings)(
        jax.random.key(0)
    )


def _random(abstract: TrainBatch, vocabulary: int, key: jax.Array) -> TrainBatch:
    def one(place: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mine = jax.random.fold_in(key, place)
        if leaf.dtype == jnp.uint8:
            return jax.random.bits(mine, leaf.shape, jnp.uint8)
        if leaf.dtype == jnp.float32:
            return jax.random.normal(mine, leaf.shape)
        return jnp.ones(leaf.shape, leaf.dtype)

    leaves, tree = jax.tree.flatten(abstract)
    batch = jax.tree.unflatten(tree, [one(place, leaf) for place, leaf in enumerate(leaves)])
    observation = batch.observation
    sizes = {
        slot: jnp.broadcast_to(jnp.array(pixels.shape[1:3], jnp.int32), (pixels.shape[0], 2))
        for slot, pixels in observation.images.items()
    }
    tokens = jax.random.randint(key, observation.tokens.shape, 0, vocabulary)
    rows = jnp.arange(batch.rows.shape[0], dtype=jnp.int32)
    first = jax.tree.map(jnp.zeros_like, batch.frames)
    return batch._replace(
        observation=observation._replace(image_sizes=sizes, tokens=tokens), frames=first, rows=rows
    )


def report(run: RunConfig, *, cameras: int, steps: int) -> tuple[str, dict[str, Any]]:
    """Measures, and returns a table and its numbers."""
    speed = benchmark_train(run, cameras=cameras, steps=steps)
    return table(speed), speed.to_json()


def table(speed: TrainSpeed) -> str:
    """Returns the speed as a Markdown table."""
    peak = (
        "not counted by this device"
        if speed.peak_bytes is None
        else f"{speed.peak_bytes / 1e9:.1f} GB"
    )
    again = speed.flops / speed.model_flops - 1.0
    quick, slow = min(speed.step_seconds), max(speed.step_seconds)
    mesh = " x ".join(f"{axis} {size}" for axis, size in speed.mesh.items())
    rows = {
        "device": f"{speed.devices} x {speed.device}, mesh {mesh}",
        "model": f"{speed.parameters:,} parameters, {speed.dtype}, {speed.cameras} cameras, remat {speed.remat}",
        "batch": f"{speed.batch} samples, {speed.draws} draws each",
        "compiling": f"{speed.compile_seconds:.1f} s",
        "a step": f"{speed.seconds * 1e3:.1f} ms, the median of {len(speed.step_seconds)} from {quick * 1e3:.1f} to {slow * 1e3:.1f} ms",
        "samples/s": f"{speed.samples_per_second:.1f}",
        "the model's products": f"{speed.model_flops / 1e12:.4g} TFLOP a step, {speed.model_flops / speed.seconds / 1e12:.4g} TFLOP/s",
        "computed again": f"{again:.0%} of them: {speed.flops / speed.seconds / 1e12:.4g} TFLOP/s in all",
        "large products alone": f"{speed.matmul_rate / 1e12:.4g} TFLOP/s, measured in {speed.dtype}",
        "the model's of these": f"{speed.share:.1%}",
        "memory at its peak": peak,
        "resident memory at its peak": f"{speed.resident_bytes / 1e9:.2f} GB",
    }
    return "\n".join(
        [
            "| what | result |",
            "|---|---|",
            *(f"| {what} | {result} |" for what, result in rows.items()),
        ]
    )
