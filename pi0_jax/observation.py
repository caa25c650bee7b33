"""The contract between data, robots and the model, drawn once.

    robot or dataset                host (NumPy)                      device (jitted)
    ----------------                ------------                      ---------------
    RawObservation   --preprocess.host-->   RawBatch   --preprocess.device-->   Observation --> Pi0
    uint8 images of                 uint8 images on one canvas         float32 images in [-1, 1]
    any size, robot units,          per slot, model units, tokens      at the model's size
    a prompt

Axis legend: B batch, K draws of noise and time per observation, H action horizon, D model action (and state) dimension,
L prompt tokens, h w canvas height and width, S image side of the model.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

# The published camera slots, in the order in which their tokens enter the model. A robot fills any subset.
CAMERA_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


class RawObservation(TypedDict):
    """What a robot, a simulator or a dataset hands over for one moment, in the robot's own names and units."""

    images: Mapping[str, np.ndarray]  # the embodiment's camera name -> uint8[height, width, 3], RGB
    # float[number of state dimensions], in the units that the embodiment declares
    state: np.ndarray
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
    actions: np.ndarray  # float32[H, number of action dimensions]; past the episode's end absolute dimensions repeat, relative ones are 0
    action_valid: np.ndarray  # bool[H]: False past the episode's end
    dataset: int  # place of the dataset in the mixture
    episode: int  # number of the episode in the dataset's index
    step: int  # step within the episode


class RawBatch(NamedTuple):
    """Host arrays, ready for the device: everything that depends on one robot is done, everything per pixel is not."""

    # slot -> uint8[B, h, w, 3], each image in the upper left corner of the canvas
    images: Mapping[str, Any]
    # slot -> int32[B, 2]: height and width of each image on its canvas
    image_sizes: Mapping[str, Any]
    image_masks: Mapping[str, Any]  # slot -> bool[B]: False where this robot has no such camera
    tokens: Any  # int32[B, L]
    token_mask: Any  # bool[B, L]
    state: Any  # float32[B, D], normalised, zero-padded


class Observation(NamedTuple):
    """What the model reads."""

    # slot -> float32[B, S, S, 3] in [-1, 1]; a slot that is not here is not encoded at all
    images: Mapping[str, Any]
    image_masks: Mapping[str, Any]  # slot -> bool[B]
    tokens: Any  # int32[B, L]
    token_mask: Any  # bool[B, L]
    state: Any  # float32[B, D]


class ActionBatch(NamedTuple):
    """Training targets, in model units."""

    actions: Any  # float32[B, H, D], normalised, zero-padded
    valid: Any  # bool[B, H]: False past the episode's end
    dims: Any  # bool[B, D]: True for the dimensions that this robot has


class FrameId(NamedTuple):
    """Where each row of a batch came from."""

    dataset: Any  # int32[B]
    episode: Any  # int32[B]
    step: Any  # int32[B]


class TrainBatch(NamedTuple):
    """One global batch, or one process's rows of it."""

    observation: RawBatch
    targets: ActionBatch
    frames: FrameId
    rows: Any  # int32[B]: the row's number in the global batch; keys the row's randomness together with seed and step
