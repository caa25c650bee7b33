"""How large a run's state is, before anything is allocated; and what to do where a device cannot hold the run."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pi0_jax.errors import InputError
from pi0_jax.policy_config import trainable_part
from pi0_jax.train.config import RunConfig
from pi0_jax.train.placement import abstract_run_state
from pi0_jax.trainable import select


class Footprint(NamedTuple):
    """How many parameters a run has, and the bytes that one device holds of its state."""

    parameters: int
    trained: int
    weights: int  # bytes, and so are the next three; LoRA's factors among them
    gradients: int
    optimizer: int
    moving_average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.moving_average


def footprint(run: RunConfig, mesh: Mesh) -> Footprint:
    """Returns what a run's state takes on a mesh, from shapes alone.

    Gradients are float32 like what is trained; where the batch is run in parts there are two: the sum, and that of the part.
    """
    state = abstract_run_state(run, mesh)
    weights, trained = (
        (state.params, state.factors),
        select(state.params, state.factors, trainable_part(run)),
    )
    copies = 1 if run.accumulate == 1 else 2
    return Footprint(
        parameters=_count(weights),
        trained=_count(trained),
        weights=bytes_per_device(weights),
        gradients=copies * bytes_per_device(trained),
        optimizer=bytes_per_device(state.opt_state),
        moving_average=bytes_per_device(state.ema),
    )


def described(held: Footprint) -> list[str]:
    """Returns two lines for people: parameters, total and trained; megabytes per device."""
    parts = {
        "parameters": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "moving average": held.moving_average,
    }
    return [
        f"{held.parameters:,} parameters, of which {held.trained:,} are trained",
        f"MB per device: {', '.join(f'{name} {size / 1e6:,.1f}' for name, size in parts.items())}; {held.total / 1e6:,.1f} in all",
    ]


@contextlib.contextmanager
def named_out_of_memory(run: RunConfig) -> Iterator[None]:
    """Where XLA finds no memory, when it compiles or runs, InputError says with its words which settings need less."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        found, limit = str(error).splitlines()[0].rstrip("."), _limit(jax.local_devices()[0])
        remat = "" if run.remat == "full" else f", remat 'full' (is {run.remat!r})"
        raise InputError(
            f"out of memory: {found}{limit}. To need less for activations: config.accumulate above {run.accumulate}{remat},"
            f" batch_size below {run.batch_size}; for parameters and optimizer: more devices in mesh.fsdp (is {run.mesh.fsdp}),"
            " frozen or lora, bfloat16 as first_moment_dtype or frozen_dtype"
        ) from error


def _limit(device: jax.Device) -> str:
    stats = device.memory_stats()  # None of CPUs
    return (
        f"; a device has {stats['bytes_limit']:,} bytes" if stats and "bytes_limit" in stats else ""
    )


def bytes_per_device(tree: Any) -> int:
    """Of ShapeDtypeStructs with shardings: the bytes that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
