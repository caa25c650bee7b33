"""Turns raw observations into the model's input, and the model's actions into the robot's.

Training and the policy share this file. It has two halves for the way in, and one for the way
back:

    host     RawObservation, in robot units -> RawBatch, in model units: it is checked, tokenised,
             normalised, padded, and its images are placed on canvases
    device   RawBatch -> Observation: images are resized, scaled and, in training, augmented
             (jitted)
    back     actions in model units -> actions in robot units
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.observation import (
    CAMERA_SLOTS,
    ActionBatch,
    Observation,
    RawBatch,
    RawObservation,
    Sample,
)
from pi0_jax.preprocess import images, normalize, record_fit
from pi0_jax.preprocess.deltas import delta_offset, in_robot_turn, to_delta, turned
from pi0_jax.preprocess.normalize import A
from pi0_jax.preprocess.tokenizer import Tokenizer, state_bins

WRIST_SLOTS = ("left_wrist_0_rgb", "right_wrist_0_rgb")


class Robot(NamedTuple):
    """Holds what preprocessing on the host needs to know of the robot behind an observation."""

    embodiment: Embodiment
    statistics: normalize.Statistics


class Layout(NamedTuple):
    """Holds what the model wants of every batch. It is the same for all batches of a run.

    Attributes:
        slots: the camera slots to fill. A robot that lacks one of them gets it masked.
        image_size: height and width of the model's images, in pixels.
        action_dim: the number of state and action dimensions in the model, D.
        max_tokens: the number of prompt tokens, L.
        normalization: how states and actions are normalised.
        normalization_clip: states and target actions are cut off at ± this; 0 sets no bound.
        cut_prompts: whether a prompt of more than max_tokens loses its end; else it is refused.
        state_in_prompt: whether the prompt tells the state too, see tokenizer.py.
        embodiment_tokens: the names of the records that have a token of their own, in its order.
    """

    slots: tuple[str, ...]
    image_size: int
    action_dim: int
    max_tokens: int
    normalization: normalize.Mode
    normalization_clip: float
    cut_prompts: bool = False
    state_in_prompt: bool = False
    embodiment_tokens: tuple[str, ...] = ()


# It stands for the image of a camera that a robot does not have.
_NOTHING = np.empty((0, 0, 3), np.uint8)


def host(
    observations: Sequence[RawObservation],
    robots: Sequence[Robot],
    layout: Layout,
    tokenizer: Tokenizer,
    canvases: Mapping[str, tuple[int, int]] | Sequence[tuple[int, int]] | None = None,
) -> RawBatch:
    """Makes one batch of observations in robot units, on the host.

    Args:
        observations: one for each of the B rows.
        robots: the robot behind each observation.
        layout: what the model wants of the batch.
        tokenizer: turns prompts into token ids.
        canvases: height and width of each slot's canvas. A sequence gives the canvases to choose
            from: all slots then get the smallest one that holds every image, or the largest one
            where none does. With None each slot gets the smallest canvas that holds its images.

    Returns:
        The batch: NumPy arrays of B rows, in model units.

    Raises:
        InputError: there are no observations, a camera is missing, an image is not uint8 RGB, a
            state has another size or is not finite, or a prompt has too many tokens and may not be
            cut. The message names the field.
    """
    batch = len(observations)
    if not batch:
        raise InputError("no observations: expected at least one")
    prompts = [
        record_fit.checked_prompt(
            observation, robot.embodiment, f"observation {row} ({robot.embodiment.name})"
        )
        for row, (observation, robot) in enumerate(zip(observations, robots, strict=True))
    ]
    if canvases is not None and not isinstance(canvases, Mapping):
        shapes = [
            observation["images"][camera].shape[:2]
            for observation, robot in zip(observations, robots, strict=True)
            for camera in robot.embodiment.cameras.values()
        ]
        canvases = dict.fromkeys(layout.slots, _chosen(canvases, shapes))
    pixels, sizes, masks = {}, {}, {}
    for slot in layout.slots:
        masks[slot] = np.array([slot in robot.embodiment.cameras for robot in robots])
        seen = {
            i: observations[i]["images"][robots[i].embodiment.cameras[slot]]
            for i in np.flatnonzero(masks[slot]).tolist()
        }
        canvas = (
            canvas_for([image.shape[:2] for image in seen.values()])
            if canvases is None
            else canvases[slot]
        )
        pixels[slot] = np.empty((batch, *canvas, 3), np.uint8)
        sizes[slot] = np.empty((batch, 2), np.int32)
        for i in range(batch):
            image = fit(seen[i], canvas) if i in seen else _NOTHING
            # The device divides by the size, so that of an absent image is 1 x 1 and not 0 x 0.
            sizes[slot][i] = np.maximum(image.shape[:2], 1)
            _place(image, pixels[slot][i])
    tokens = np.empty((batch, layout.max_tokens), np.int32)
    token_mask = np.empty((batch, layout.max_tokens), bool)
    state = np.zeros((batch, layout.action_dim), np.float32)
    for i, (observation, robot) in enumerate(zip(observations, robots, strict=True)):
        in_model = state_to_model(
            np.asarray(observation["state"], np.float32), robot, layout.normalization
        )
        state[i, : len(robot.embodiment.state)] = normalize.clipped(
            in_model, layout.normalization_clip
        )
        tokens[i], token_mask[i] = tokenizer.encode(
            prompts[i],
            layout.max_tokens,
            state_bins(in_model).tolist() if layout.state_in_prompt else None,
            cut=layout.cut_prompts,
        )
    return RawBatch(
        pixels, sizes, masks, tokens, token_mask, state, embodiment_numbers(robots, layout)
    )


def embodiment_numbers(robots: Sequence[Robot], layout: Layout) -> np.ndarray | None:
    """Returns the number of each robot's own token, int32[B]; None where the model has none."""
    names = layout.embodiment_tokens
    if not names:
        return None
    return np.array([names.index(robot.embodiment.name) for robot in robots], np.int32)


def _chosen(
    canvases: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Returns the smallest canvas that holds images of all these shapes, or the largest canvas."""
    by_size = sorted(canvases, key=math.prod)
    return next(
        (canvas for canvas in by_size if all(h <= canvas[0] and w <= canvas[1] for h, w in shapes)),
        by_size[-1],
    )


def _place(image: np.ndarray, canvas: np.ndarray) -> None:
    """Copies an image into the upper left corner of a canvas and blackens the rest."""
    height, width = image.shape[:2]
    canvas[:height, :width] = image
    canvas[:height, width:] = 0
    canvas[height:] = 0


def fit(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Reduces an image to the canvas if it is larger, and returns it as it is otherwise.

    The image is uint8[height, width, 3]. The filter is antialiased bilinear, and the aspect ratio
    is kept.
    """
    height, width = image.shape[:2]
    if height <= canvas[0] and width <= canvas[1]:
        return image
    # Whole numbers, so that the side which decides fills the canvas exactly.
    if height * canvas[1] > width * canvas[0]:
        size = max(width * canvas[0] // height, 1), canvas[0]
    else:
        size = canvas[1], max(height * canvas[1] // width, 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def canvas_for(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the smallest canvas that holds all these sizes (height, width), or the largest."""
    return images.smallest_canvas(
        max((h for h, _ in sizes), default=1), max((w for _, w in sizes), default=1)
    )


def device(
    batch: RawBatch, layout: Layout, *, augmentation_keys: jax.Array | None = None
) -> Observation:
    """Resizes and scales the images of a batch, and augments them if keys are given.

    The function is jittable.

    Args:
        batch: what `host` made.
        layout: what the model wants of the batch; static.
        augmentation_keys: one key for each row, [B]; None for no augmentation.

    Returns:
        The observation, with images float32[B, S, S, 3] in [-1, 1].
    """
    result = {}
    for slot in layout.slots:
        pixels = images.resize_with_pad(
            batch.images[slot], batch.image_sizes[slot], layout.image_size
        )
        if augmentation_keys is not None:
            # The key depends on the slot's name and not on its place in the layout, so that a
            # camera's augmentation does not depend on which other cameras there are.
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
                augmentation_keys, CAMERA_SLOTS.index(slot)
            )
            # The default argument binds this slot's value, whenever the lambda runs.
            pixels = jax.vmap(
                lambda key, image, wrist=slot in WRIST_SLOTS: images.augment(
                    key, image, geometric=not wrist
                )
            )(keys, pixels)
        result[slot] = images.to_unit_range(pixels)
    return Observation(
        result, batch.image_masks, batch.tokens, batch.token_mask, batch.state, batch.embodiment
    )


def state_to_model(state: A, robot: Robot, mode: normalize.Mode) -> A:
    """Converts a state float[..., n] in robot units to float32[..., n] in model units."""
    statistics = robot.statistics.state
    near = turned(state, robot.embodiment.readings.state, statistics.mean)
    return normalize.normalize(near, statistics, mode)


def actions_to_model(
    actions: np.ndarray, state: np.ndarray, robot: Robot, mode: normalize.Mode
) -> np.ndarray:
    """Converts a chunk from robot units to model units. It is the inverse of `to_robot`.

    Args:
        actions: float[..., H, A], in robot units.
        state: float[..., n], in robot units, the state before the chunk.
        robot, mode: how to normalise.

    Returns:
        float32[..., H, A], in model units.
    """
    statistics = robot.statistics.actions
    chunk = to_delta(actions, np.asarray(state, np.float32), robot.embodiment)
    near = turned(chunk, robot.embodiment.readings.targets, statistics.mean)
    return normalize.normalize(near, statistics, mode)


def host_actions(samples: Sequence[Sample], robots: Sequence[Robot], layout: Layout) -> ActionBatch:
    """Makes the training targets of a batch, in model units, from the samples' action chunks.

    Deltas are taken, and the result is normalised, clipped, and padded with zeros to the model's
    action dimension.
    """
    horizon = samples[0].actions.shape[0]
    actions = np.zeros((len(samples), horizon, layout.action_dim), np.float32)
    dims = np.zeros((len(samples), layout.action_dim), bool)
    for i, (sample, robot) in enumerate(zip(samples, robots, strict=True)):
        count = len(robot.embodiment.actions)
        chunk = actions_to_model(
            sample.actions, sample.observation["state"], robot, layout.normalization
        )
        actions[i, :, :count] = normalize.clipped(chunk, layout.normalization_clip)
        dims[i, :count] = True
    return ActionBatch(actions, np.stack([sample.action_valid for sample in samples]), dims)


def to_robot(actions: A, state: A, robot: Robot, mode: normalize.Mode) -> A:
    """Converts a chunk of actions from model units to robot units.

    Args:
        actions: float32[..., H, D], in model units.
        state: float[..., n], in robot units, the state before the chunk.
        robot, mode: how the actions were normalised.

    Returns:
        float32[..., H, A], in robot units.
    """
    count = len(robot.embodiment.actions)
    chunk = normalize.denormalize(actions[..., :count], robot.statistics.actions, mode)
    # Inside a compiled function the state is an array of JAX already.
    if not isinstance(state, jax.Array):
        state = np.asarray(state, np.float32)
    chunk = chunk + delta_offset(state, robot.embodiment)[..., None, :]
    return in_robot_turn(chunk, robot.embodiment)


def dimension_masks(robots: Sequence[Robot], action_dim: int) -> np.ndarray:
    """Returns bool[B, D]: True for the action dimensions that each robot has."""
    counts = np.array([len(robot.embodiment.actions) for robot in robots])
    return np.arange(action_dim) < counts[:, None]


def check_robot(robot: Robot, layout: Layout) -> None:
    """Checks that an embodiment fits the model, and that its statistics fit its record.

    Raises:
        InputError: the robot has more dimensions than the model, its statistics have another number
            of dimensions or lack percentiles, they lie outside of what the record declares, or the
            model has tokens of other robots alone.
    """
    embodiment, statistics = robot.embodiment, robot.statistics
    for what, dims, vector in (
        ("state", embodiment.state, statistics.state),
        ("action", embodiment.actions, statistics.actions),
    ):
        if len(dims) > layout.action_dim:
            raise InputError(
                f"{embodiment.name} has {len(dims)} {what} dimensions, the model {layout.action_dim} (action_dim)"
            )
        if len(dims) != len(vector.mean):
            raise InputError(
                f"{embodiment.name} has {len(dims)} {what} dimensions, its statistics {len(vector.mean)}"
            )
        if layout.normalization == "quantile" and (vector.q01 is None or vector.q99 is None):
            raise InputError(
                f"{embodiment.name}: quantile normalisation: expected {what} statistics with q01 and q99, found none"
            )
    names = layout.embodiment_tokens
    if names and embodiment.name not in names:
        raise InputError(
            f"{embodiment.name}: expected a robot of config.embodiment_tokens, {', '.join(names)}"
        )
    record_fit.check_ranges(embodiment, statistics)


def used_slots(embodiments: Sequence[Embodiment]) -> tuple[str, ...]:
    """Returns the camera slots that any of these robots fills, in the model's order."""
    return tuple(slot for slot in CAMERA_SLOTS if any(slot in e.cameras for e in embodiments))
