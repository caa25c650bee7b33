"""The size of a run's state is computed here, before anything is allocated.

Where a device cannot hold the run, a message says which settings need less memory.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pi0_jax.errors import InputError
from pi0_jax.models.trainable import trained_part
from pi0_jax.policy_config import trainable_part
from pi0_jax.train.config import RunConfig
from pi0_jax.train.placement import abstract_run_state


class Footprint(NamedTuple):
    """Holds how many parameters a run has, and the bytes that one device holds of its state.

    Attributes:
        parameters: the number of all parameters.
        trained: the number of parameters that are trained.
        weights: bytes of all parameters, LoRA's factors among them.
        gradients: bytes of the gradients.
        optimizer: bytes of the optimizer's state.
        moving_average: bytes of the moving average.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    moving_average: int

    @property
    def total(self) -> int:
        """Returns the sum of the bytes."""
        return self.weights + self.gradients + self.optimizer + self.moving_average


def footprint(run: RunConfig, mesh: Mesh) -> Footprint:
    """Returns what a run's state takes on a mesh, from shapes alone.

    Gradients are float32, like what is trained. Where the batch is run in parts there are two
    copies of them: the sum, and the gradients of the part.
    """
    state = abstract_run_state(run, mesh)
    weights, trained = (
        (state.params, state.factors),
        trained_part(state.params, state.factors, trainable_part(run)),
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
    """Turns XLA's lack of memory, at compiling or running, into an InputError.

    Its message has XLA's words, and says which settings of the run need less.
    """
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
    """Returns the device's memory limit as the end of a message; "" where it is not known."""
    stats = device.memory_stats()  # None on CPUs
    return (
        f"; a device has {stats['bytes_limit']:,} bytes" if stats and "bytes_limit" in stats else ""
    )


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _count(tree: Any) -> int:
    """Returns the number of elements of all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
