"""Defines the contract between data, robots and the model, drawn once.

    robot or dataset                host (NumPy)                      device (jitted)
    ----------------                ------------                      ---------------
    RawObservation   --preprocess.host-->   RawBatch   --preprocess.device-->   Observation --> Pi0
    uint8 images of                 uint8 images on one canvas         float32 images in [-1, 1]
    any size, robot units,          per slot, model units, tokens      at the model's size
    a prompt

Axis legend: B batch, H action horizon, D model action (and state) dimension, L prompt tokens,
h w canvas height and width, S image side of the model, A action dimensions and N state dimensions
of the robot.

The arrays of a batch are NumPy's on the host and JAX's on devices, so their types say `Any`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

# Processes that read files or draw images import this module, and they do without JAX.
if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

# The published camera slots, in the order in which their tokens enter the model. A robot fills any
# subset.
CAMERA_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


class RawObservation(TypedDict):
    """Is what a robot, a simulator or a dataset hands over for one moment.

    It has the robot's own names and units.

    Attributes:
        images: the embodiment's camera name -> an RGB image.
        state: float[N], in the units that the embodiment declares.
        prompt: the instruction.
    """

    images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    state: Float[np.ndarray, " N"]
    prompt: str


def prompt_text(value: Any) -> str | None:
    """Returns the text of a prompt, or None if it is no text.

    Args:
        value: a string, UTF-8 bytes, or either of them in a scalar or dimensionless array of NumPy.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, str) else None


class Sample(NamedTuple):
    """Holds one training frame: an observation and the actions that followed, in robot units.

    Attributes:
        observation: what the robot saw.
        actions: float32[H, A]. Past the episode's end absolute dimensions repeat, and relative ones
            are 0.
        action_valid: bool[H], False past the episode's end.
        dataset: the place of the dataset in the mixture.
        episode: the number of the episode in the dataset's index.
        step: the step within the episode.
    """

    observation: RawObservation
    actions: Float32[np.ndarray, "H A"]
    action_valid: Bool[np.ndarray, " H"]
    dataset: int
    episode: int
    step: int


class RawBatch(NamedTuple):
    """Holds host arrays that are ready for the device.

    All work that depends on one robot is done. All work on single pixels is still to do.

    Attributes:
        images: slot -> each image, in the upper left corner of the canvas.
        image_sizes: slot -> height and width of each image on its canvas.
        image_masks: slot -> False where this robot has no such camera.
        tokens: token ids of the prompts.
        token_mask: False where the tokens are padding.
        state: in model units: normalised, and padded with zeros.
        embodiment: the number of each robot's own token; None where the model has none.
    """

    images: Mapping[str, UInt8[Any, "B h w 3"]]
    image_sizes: Mapping[str, Int32[Any, "B 2"]]
    image_masks: Mapping[str, Bool[Any, " B"]]
    tokens: Int32[Any, "B L"]
    token_mask: Bool[Any, "B L"]
    state: Float32[Any, "B D"]
    embodiment: Int32[Any, " B"] | None = None


class Observation(NamedTuple):
    """Holds what the model reads.

    Attributes:
        images: slot -> images in [-1, 1]. A slot that is not here is not encoded at all.
        image_masks: slot -> False where this robot has no such camera.
        tokens: token ids of the prompts.
        token_mask: False where the tokens are padding.
        state: in model units: normalised, and padded with zeros.
        embodiment: the number of each robot's own token; None where the model has none.
    """

    images: Mapping[str, Float32[Array, "B S S 3"]]
    image_masks: Mapping[str, Bool[Array, " B"]]
    tokens: Int32[Array, "B L"]
    token_mask: Bool[Array, "B L"]
    state: Float32[Array, "B D"]
    embodiment: Int32[Array, " B"] | None = None


class ActionBatch(NamedTuple):
    """Holds training targets, in model units.

    Attributes:
        actions: normalised, and padded with zeros.
        valid: False past the episode's end.
        dims: True for the dimensions that this robot has.
    """

    actions: Float32[Any, "B H D"]
    valid: Bool[Any, "B H"]
    dims: Bool[Any, "B D"]


class FrameId(NamedTuple):
    """Says where each row of a batch came from."""

    dataset: Int32[Any, " B"]
    episode: Int32[Any, " B"]
    step: Int32[Any, " B"]


class TrainBatch(NamedTuple):
    """Holds one global batch, or one process's rows of it.

    Attributes:
        observation: the model's input.
        targets: the actions to learn.
        frames: where each row came from.
        rows: each row's number in the global batch. The row's randomness depends on it, on the seed
            and on the step.
    """

    observation: RawBatch
    targets: ActionBatch
    frames: FrameId
    rows: Int32[Any, " B"]
