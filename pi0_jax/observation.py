"""The contract between data, robots and the model, drawn once.

    robot or dataset                host (NumPy)                      device (jitted)
    ----------------                ------------                      ---------------
    RawObservation   --preprocess.host-->   RawBatch   --preprocess.device-->   Observation --> Pi0
    uint8 images of                 uint8 images on one canvas         float32 images in [-1, 1]
    any size, robot units,          per slot, model units, tokens      at the model's size
    a prompt

Axis legend: B batch, H action horizon, D model action (and state) dimension,
L prompt tokens, h w canvas height and width, S image side of the model, A action dimensions and N state dimensions of the robot.
A batch's arrays are NumPy's on the host and JAX's on devices: hence `Any` in their types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:  # processes that read files or draw images import this module, and do without JAX
    from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

# The published camera slots, in the order in which their tokens enter the model. A robot fills any subset.
CAMERA_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


class RawObservation(TypedDict):
    """What a robot, a simulator or a dataset hands over for one moment, in the robot's own names and units."""

    images: Mapping[
        str, UInt8[np.ndarray, "height width 3"]
    ]  # by the embodiment's camera name; RGB
    state: Float[np.ndarray, " N"]  # in the units that the embodiment declares
    prompt: str


def prompt_text(value: Any) -> str | None:
    """The text of a prompt, None if it is no text: a string, UTF-8 bytes, or either in a scalar or dimensionless array of NumPy."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, str) else None


class Sample(NamedTuple):
    """One training frame as the data package hands it over: an observation and the actions that followed, in robot units."""

    observation: RawObservation
    # past the episode's end absolute dimensions repeat, relative ones are 0
    actions: Float32[np.ndarray, "H A"]
    action_valid: Bool[np.ndarray, " H"]  # False past the episode's end
    dataset: int  # place of the dataset in the mixture
    episode: int  # number of the episode in the dataset's index
    step: int  # step within the episode


class RawBatch(NamedTuple):
    """Host arrays, ready for the device: everything that depends on one robot is done, everything per pixel is not."""

    # by slot, each image in the upper left corner of the canvas
    images: Mapping[str, UInt8[Any, "B h w 3"]]
    image_sizes: Mapping[str, Int32[Any, "B 2"]]  # height and width of each image on its canvas
    image_masks: Mapping[str, Bool[Any, " B"]]  # False where this robot has no such camera
    tokens: Int32[Any, "B L"]
    token_mask: Bool[Any, "B L"]
    state: Float32[Any, "B D"]  # normalised, zero-padded


class Observation(NamedTuple):
    """What the model reads."""

    # by slot, in [-1, 1]; a slot that is not here is not encoded at all
    images: Mapping[str, Float32[Array, "B S S 3"]]
    image_masks: Mapping[str, Bool[Array, " B"]]
    tokens: Int32[Array, "B L"]
    token_mask: Bool[Array, "B L"]
    state: Float32[Array, "B D"]


class ActionBatch(NamedTuple):
    """Training targets, in model units."""

    actions: Float32[Any, "B H D"]  # normalised, zero-padded
    valid: Bool[Any, "B H"]  # False past the episode's end
    dims: Bool[Any, "B D"]  # True for the dimensions that this robot has


class FrameId(NamedTuple):
    """Where each row of a batch came from."""

    dataset: Int32[Any, " B"]
    episode: Int32[Any, " B"]
    step: Int32[Any, " B"]


class TrainBatch(NamedTuple):
    """One global batch, or one process's rows of it."""

    observation: RawBatch
    targets: ActionBatch
    frames: FrameId
    # the row's number in the global batch; keys the row's randomness together with seed and step
    rows: Int32[Any, " B"]
