"""Compiles a run's train step and sampler for TPU slices that are not there.

It needs libtpu (the extra `tpu`) and no TPU. Nothing is allocated and no data are read: arguments
are shapes with shardings, and images stand on the canvas of the model's own size. The cameras are
those of the config's datasets.
"""

import dataclasses
import os
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from pi0_jax import preprocess, sharding
from pi0_jax.aot import hlo
from pi0_jax.data.datasets import find_row
from pi0_jax.errors import InputError
from pi0_jax.models import sampling
from pi0_jax.models.layers import ComputeOptions, Remat
from pi0_jax.models.pi0 import Pi0, parameter_shapes
from pi0_jax.observation import ActionBatch, FrameId, RawBatch, TrainBatch
from pi0_jax.policy_config import layout, model_config
from pi0_jax.train.chips import CHIPS, Chip, Roofline, matmul_flops, roofline
from pi0_jax.train.config import RunConfig
from pi0_jax.train.state import abstract_run_state, bytes_per_device, run_mesh, trace_step

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
    """Describes a program as XLA compiled it; bytes are those of one chip in one call."""

    chip: Chip
    devices: int
    arguments: int  # bytes
    outputs: int  # bytes, without the outputs that take an argument's place
    temporaries: int  # bytes
    flops: float  # of matrix products on all chips, with what the backward pass computes again
    model_flops: float  # without that
    hbm_traffic: int  # bytes read from and written to HBM
    collectives: tuple[hlo.Collective, ...]

    @property
    def used(self) -> int:
        return self.arguments + self.outputs + self.temporaries

    @property
    def fits(self) -> bool:
        return self.used <= self.chip.hbm_bytes

    @property
    def roofline(self) -> Roofline:
        return roofline(
            self.chip,
            flops=self.flops / self.devices,
            hbm_traffic=self.hbm_traffic,
            ici_sent=sum(collective.sent for collective in self.collectives),
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
    bounds = (*(min(side, 2) for side in sides), 1, 1)[:3]
    small = {"chips_per_host_bounds": bounds} if 1 in sides[:2] else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **small)
    # There is no libtpu, or no such slice.
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"topology {name!r}: {said}; expected a slice such as v5e:4x4 or v5p:4x4x4, and libtpu"
            " (pi0_jax[tpu])"
        ) from error
    devices: list[jax.Device] = list(topology.devices)
    if devices[0].device_kind not in CHIPS:
        known = ", ".join(chip.name for chip in CHIPS.values())
        raise InputError(
            f"topology {name!r}: expected chips {known}, found {devices[0].device_kind}"
        )
    return devices


def cameras(run: RunConfig) -> tuple[str, ...]:
    return preprocess.used_slots(
        [find_row(name, run.own_datasets).embodiment for name in run.datasets]
    )


def traced_step(
    run: RunConfig, slots: tuple[str, ...], mesh: Mesh, *, remat: Remat | None = None
) -> jax.stages.Traced:
    """Traces the step that the training loop runs.

    Args:
        run: the run's config.
        slots: the camera slots of the batch.
        mesh: the devices.
        remat: what the backward pass computes again; None takes the run's own. With "none" a count
            of the traced operations leaves out what is computed again.
    """
    run = run if remat is None else dataclasses.replace(run, remat=remat)
    state, batch = abstract_run_state(run, mesh), abstract_batch(run, slots, mesh)
    return trace_step(run, layout(run, slots), state, batch, mesh)


def abstract_batch(run: RunConfig, slots: tuple[str, ...], mesh: Mesh) -> TrainBatch:
    """Returns a global batch of ShapeDtypeStructs, whose batch axis is split over the mesh."""
    config, split = model_config(run), sharding.batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((run.batch_size, *shape), dtype, sharding=split)

    return TrainBatch(
        observation=_raw_batch(run, slots, array),
        targets=ActionBatch(
            array(np.float32, config.horizon, config.action_dim),
            array(bool, config.horizon),
            array(bool, config.action_dim),
        ),
        frames=FrameId(*(array(np.int32) for _ in FrameId._fields)),
        rows=array(np.int32),
    )


def _raw_batch(run: RunConfig, slots: tuple[str, ...], array: Any) -> RawBatch:
    """Returns raw observations; `array(dtype, *shape)` makes each one and adds the batch axis."""
    config = model_config(run)
    canvas = preprocess.canvas_for([(config.vision.image_size, config.vision.image_size)])
    return RawBatch(
        images={slot: array(np.uint8, *canvas, 3) for slot in slots},
        image_sizes={slot: array(np.int32, 2) for slot in slots},
        image_masks={slot: array(bool) for slot in slots},
        tokens=array(np.int32, config.max_tokens),
        token_mask=array(bool, config.max_tokens),
        state=array(np.float32, config.action_dim),
        embodiment=array(np.int32) if config.embodiment_tokens else None,
    )


def train_step(run: RunConfig, devices: list[jax.Device]) -> Compiled:
    """Compiles the run's train step, and returns what XLA says of it.

    Raises:
        DoesNotFit: XLA says so. Where the state alone is too large, this is raised at once,
            before minutes of compiling.
    """
    mesh, slots = run_mesh(run, devices), cameras(run)
    state = bytes_per_device(abstract_run_state(run, mesh))
    memory = CHIPS[devices[0].device_kind].hbm_bytes
    if state > memory:
        raise DoesNotFit(
            f"parameters, EMA and optimizer state alone take {state / 1e9:.1f} of"
            f" {memory / 1e9:.1f} GB a chip"
        )
    model_flops = matmul_flops(traced_step(run, slots, mesh, remat="none").jaxpr)
    return _compile(traced_step(run, slots, mesh), devices, model_flops=model_flops)


def sampler(run: RunConfig, device: jax.Device) -> Compiled:
    """Compiles a policy's function for one observation on one chip.

    The observation has all of the config's cameras.

    Raises:
        DoesNotFit: XLA says that the program needs more memory than the chip has.
    """
    # Its package opens checkpoints, which who compiles a training step need not be able to.
    from pi0_jax.policy.program import sample

    here = SingleDeviceSharding(device)
    slots, config = cameras(run), model_config(run)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), dtype, sharding=here)

    pack = partial(sampling.pack, dtype=run.dtype, scan_layers=False)
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.eval_shape(pack, parameter_shapes(config)),
    )
    model = Pi0(config, ComputeOptions(dtype=jnp.dtype(run.dtype), scan_layers=False))
    function = partial(
        sample,
        layout=layout(run, slots),
        model=model,
        num_steps=run.sampling_steps,
        real_dims_only=run.loss_dims == "real",
    )
    dims, noise = array(bool, config.action_dim), (config.horizon, config.action_dim)
    traced = jax.jit(function).trace(
        weights, _raw_batch(run, slots, array), dims, array(np.float32, *noise)
    )
    return _compile(traced, [device])


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
