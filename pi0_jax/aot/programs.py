"""Compiles a run's train step and sampler for TPU slices that are not there.

It needs libtpu (the extra `tpu`) and no TPU. Nothing is allocated and no data are read: see
step.py. The cameras are those of the config's datasets.
"""

import os
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from pi0_jax import preprocess
from pi0_jax.aot import hlo
from pi0_jax.aot.step import raw_batch, state_bytes, traced_step
from pi0_jax.data.datasets import find_row
from pi0_jax.errors import InputError
from pi0_jax.models import sampling
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0, parameter_shapes
from pi0_jax.policy.program import sample
from pi0_jax.policy_config import layout, model_config
from pi0_jax.train.chips import CHIPS, Chip, Roofline, roofline
from pi0_jax.train.config import RunConfig
from pi0_jax.train.flops import matmul_flops
from pi0_jax.train.placement import run_mesh

_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Any accelerator will do here: topologies are asked for by name.
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class DoesNotFit(Exception):
    """Says that a program needs more memory than a chip has."""


class Compiled(NamedTuple):
    """Describes a program as XLA compiled it; bytes are those of one chip.

    Attributes:
        chip: the kind of chip.
        devices: the number of chips.
        arguments: bytes of the program's arguments.
        outputs: bytes of its outputs, without those that take an argument's place.
        temporaries: bytes of everything between.
        flops: operations of matrix products in one call, on all chips together. They include what
            the backward pass computes again.
        model_flops: the same without what the backward pass computes again.
        hbm_traffic: bytes read from and written to HBM in one call.
        collectives: what the chips send to each other.
    """

    chip: Chip
    devices: int
    arguments: int
    outputs: int
    temporaries: int
    flops: float
    model_flops: float
    hbm_traffic: int
    collectives: tuple[hlo.Collective, ...]

    @property
    def used(self) -> int:
        return self.arguments + self.outputs + self.temporaries

    @property
    def roofline(self) -> Roofline:
        sent = sum(collective.sent for collective in self.collectives)
        return roofline(
            self.chip, flops=self.flops / self.devices, hbm_traffic=self.hbm_traffic, ici_sent=sent
        )

    def utilisation(self, seconds: float) -> float:
        """Returns the model's operations over what the chips could do in so many seconds."""
        return self.model_flops / (self.devices * self.chip.flops * seconds)


def topology_devices(name: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice; programs can be compiled for them but not run.

    Args:
        name: a slice such as "v5e:4x4". A slice smaller than a host is cut from one: "v5e:1x1".

    Raises:
        InputError: there is no libtpu, libtpu does not know the slice, or chips.py does not know
            its chips.
    """
    # Neither JAX nor libtpu may look for a TPU, or for its host's name and kind. Other processes
    # may compile at the same time.
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(_NO_TPU)
    sides = [int(side) for side in re.findall(r"\d+", name.partition(":")[2])]
    small = (
        {"chips_per_host_bounds": (*(min(side, 2) for side in sides), 1, 1)[:3]}
        if 1 in sides[:2]
        else {}
    )
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **small)
    # There is no libtpu, or no such slice.
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"topology {name!r}: {said}; expected a slice such as v5e:4x4 or v5p:4x4x4, and libtpu (pi0_jax[tpu])"
        ) from error
    devices: list[jax.Device] = list(topology.devices)
    if devices[0].device_kind not in CHIPS:
        raise InputError(
            f"topology {name!r}: expected chips {', '.join(c.name for c in CHIPS.values())}, found {devices[0].device_kind}"
        )
    return devices


def cameras(run: RunConfig) -> tuple[str, ...]:
    return preprocess.used_slots(
        [find_row(name, run.own_datasets).embodiment for name in run.datasets]
    )


def train_step(run: RunConfig, devices: list[jax.Device]) -> Compiled:
    """Compiles the run's train step, and returns what XLA says of it.

    Raises:
        DoesNotFit: XLA says so. Where the state alone is too large, this is raised at once,
            before minutes of compiling.
    """
    mesh, slots = run_mesh(run, devices), cameras(run)
    state, memory = state_bytes(run, mesh), CHIPS[devices[0].device_kind].hbm_bytes
    if state > memory:
        raise DoesNotFit(
            f"parameters, EMA and optimizer state alone take {state / 1e9:.1f} of {memory / 1e9:.1f} GB a chip"
        )
    model_flops = matmul_flops(traced_step(run, slots, mesh, remat="none").jaxpr)
    return _compile(traced_step(run, slots, mesh), devices, model_flops=model_flops)


def sampler(run: RunConfig, device: jax.Device) -> Compiled:
    """Compiles a policy's function for one observation on one chip.

    The observation has all of the config's cameras.

    Raises:
        DoesNotFit: XLA says that the program needs more memory than the chip has.
    """
    where = jax.sharding.SingleDeviceSharding(device)
    slots, config = cameras(run), model_config(run)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), dtype, sharding=where)

    packed = jax.eval_shape(
        partial(sampling.pack, dtype=run.dtype, scan_layers=False), parameter_shapes(config)
    )
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), packed
    )
    model = Pi0(config, ComputeOptions(dtype=jnp.dtype(run.dtype), scan_layers=False))
    sampler = partial(sampling.sample, model=model, num_steps=run.sampling_steps)
    function = partial(
        sample, layout=layout(run, slots), sampler=sampler, real_dims_only=run.loss_dims == "real"
    )
    noise = array(np.float32, config.horizon, config.action_dim)
    return _compile(
        jax.jit(function).trace(
            weights, raw_batch(run, slots, array), array(bool, config.action_dim), noise
        ),
        [device],
    )


def _compile(traced: Any, devices: list[jax.Device], *, model_flops: int | None = None) -> Compiled:
    flops = matmul_flops(traced.jaxpr)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(" ".join(str(error).split("\n")[0].split())) from error
    memory, program = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    return Compiled(
        chip=CHIPS[devices[0].device_kind],
        devices=len(devices),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=flops,
        model_flops=flops if model_flops is None else model_flops,
        hbm_traffic=hlo.hbm_traffic(program),
        collectives=tuple(hlo.collectives(program)),
    )
