"""Traces a run's train step before anything is there.

The step's arguments are shapes with shardings. Nothing is allocated and no data are read. Images
stand on the canvas of the model's own size.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pi0_jax import preprocess, sharding
from pi0_jax.models.layers import Remat
from pi0_jax.observation import ActionBatch, FrameId, RawBatch, TrainBatch
from pi0_jax.policy_config import layout, model_config
from pi0_jax.train import placement
from pi0_jax.train.config import RunConfig
from pi0_jax.train.footprint import bytes_per_device


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
    state = placement.abstract_run_state(run, mesh)
    rematerialised = run if remat is None else dataclasses.replace(run, remat=remat)
    model = placement.make_model(rematerialised, mesh)
    return placement.jit_run_step(run, layout(run, slots), model, state).trace(
        state, abstract_batch(run, slots, mesh)
    )


def state_bytes(run: RunConfig, mesh: Mesh) -> int:
    """Returns the bytes of parameters, EMA and optimizer state that one device holds."""
    return bytes_per_device(placement.abstract_run_state(run, mesh))


def abstract_batch(run: RunConfig, slots: tuple[str, ...], mesh: Mesh) -> TrainBatch:
    """Returns the shapes of a global batch, split over the mesh."""
    size, config = run.batch_size, model_config(run)
    where = sharding.batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=where)

    return TrainBatch(
        observation=raw_batch(run, slots, array),
        targets=ActionBatch(
            array(np.float32, config.horizon, config.action_dim),
            array(bool, config.horizon),
            array(bool, config.action_dim),
        ),
        frames=FrameId(*(array(np.int32) for _ in FrameId._fields)),
        rows=array(np.int32),
    )


def raw_batch(run: RunConfig, slots: tuple[str, ...], array: Any) -> RawBatch:
    """Returns a batch of raw observations made by `array`.

    Args:
        run: the run's config.
        slots: the camera slots of the batch.
        array: called as `array(dtype, *shape)`. It adds the batch axis, and what it returns takes
            the place of an array.
    """
    config = model_config(run)
    canvas = preprocess.canvas_for([(config.vision.image_size, config.vision.image_size)])
    return RawBatch(
        images={slot: array(np.uint8, *canvas, 3) for slot in slots},
        image_sizes={slot: array(np.int32, 2) for slot in slots},
        image_masks={slot: array(bool) for slot in slots},
        tokens=array(np.int32, config.max_tokens),
        token_mask=array(bool, config.max_tokens),
        state=array(np.float32, config.action_dim),
    )
