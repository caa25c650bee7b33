"""From a raw observation to the model and back: the two halves that training and the policy share.

host    RawObservations, in robot units -> RawBatch, in model units: checked, tokenised, normalised, padded, placed on canvases
device  RawBatch -> Observation: resized, scaled, in training augmented (jitted)
back    model units -> robot units
"""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from pi0_jax import images, normalize, record_fit
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.embodiments.readings import periods
from pi0_jax.errors import InputError
from pi0_jax.normalize import A
from pi0_jax.observation import (
    CAMERA_SLOTS,
    ActionBatch,
    Observation,
    RawBatch,
    RawObservation,
    Sample,
    prompt_text,
)
from pi0_jax.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

WRIST_SLOTS = ("left_wrist_0_rgb", "right_wrist_0_rgb")


class Robot(NamedTuple):
    """What host preprocessing needs to know of the robot behind an observation."""

    embodiment: Embodiment
    statistics: normalize.Statistics


class Layout(NamedTuple):
    """What the model wants of every batch; static."""

    slots: tuple[str, ...]  # camera slots to fill; a robot without one gets it masked
    image_size: int
    action_dim: int
    max_tokens: int
    normalization: normalize.Mode
    normalization_clip: (
        float  # states and target actions are cut off at ± this many model units; 0: nowhere
    )
    cut_prompts: bool = False  # a prompt over max_tokens loses its end; else it is refused


_NOTHING = np.empty((0, 0, 3), np.uint8)  # where a robot has no such camera


def host(
    observations: Sequence[RawObservation],
    robots: Sequence[Robot],
    layout: Layout,
    tokenizer: Tokenizer,
    canvases: Mapping[str, tuple[int, int]] | Sequence[tuple[int, int]] | None = None,
) -> RawBatch:
    """Observations in robot units, one per robot -> one RawBatch.

    Args:
        canvases: height and width of each slot's canvas; or those to choose from, for all slots the smallest that holds all images, or the
            largest; None takes for each slot the smallest that holds these images.

    Raises:
        InputError naming the field: no observations, a camera missing, an image that is not uint8 RGB, a state of another
        size or not finite, a prompt over the token limit that may not be cut.
    """
    batch = len(observations)
    if not batch:
        raise InputError("no observations: expected at least one")
    prompts = [
        _checked_prompt(
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
            sizes[slot][i] = np.maximum(image.shape[:2], 1)
            _place(image, pixels[slot][i])
    tokens, token_mask = zip(
        *(
            tokenizer.encode(prompt, layout.max_tokens, cut=layout.cut_prompts)
            for prompt in prompts
        ),
        strict=True,
    )
    state = np.zeros((batch, layout.action_dim), np.float32)
    for i, (observation, robot) in enumerate(zip(observations, robots, strict=True)):
        in_model = state_to_model(
            np.asarray(observation["state"], np.float32), robot, layout.normalization
        )
        state[i, : len(robot.embodiment.state)] = normalize.clipped(
            in_model, layout.normalization_clip
        )
    return RawBatch(pixels, sizes, masks, np.stack(tokens), np.stack(token_mask), state)


def _chosen(
    canvases: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
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
    """An image larger than the canvas, reduced to fit it (antialiased bilinear, aspect kept); any other as it is."""
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
    """The smallest canvas that holds images of all these sizes (height, width); the largest where none does."""
    return images.smallest_canvas(
        max((h for h, _ in sizes), default=1), max((w for _, w in sizes), default=1)
    )


def _checked_prompt(observation: RawObservation, embodiment: Embodiment, name: str) -> str:
    """The observation's prompt. Raises InputError, which begins with `name`, for what is wrong with any field."""
    for field in ("images", "state", "prompt"):
        if field not in observation:
            raise InputError(
                f"{name}: field {field!r} is missing; expected images, state and prompt"
            )
    expected = set(embodiment.cameras.values())
    for camera in sorted(expected - set(observation["images"])):
        raise InputError(
            f"{name}: camera {camera!r} is missing; got {sorted(observation['images'])}"
        )
    for camera in sorted(set(observation["images"]) - expected):
        _name_unread(embodiment.name, camera)
    for camera in sorted(expected):
        image = observation["images"][camera]
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            found = (
                f"{image.dtype}{list(image.shape)}"
                if isinstance(image, np.ndarray)
                else type(image).__name__
            )
            raise InputError(
                f"{name}: image {camera!r} must be uint8[height, width, 3] RGB, got {found}"
            )
    state = np.asarray(observation["state"])
    if state.shape != (len(embodiment.state),):
        names = ", ".join(dim.name for dim in embodiment.state)
        raise InputError(
            f"{name}: state must have {len(embodiment.state)} dimensions ({names}), got shape {list(state.shape)}"
        )
    if state.dtype.kind not in "fiu":
        raise InputError(f"{name}: state must hold numbers, got {state.dtype}")
    for dim, value in zip(embodiment.state, state, strict=True):
        if not abs(value) <= np.finfo(np.float32).max:
            raise InputError(f"{name}: state {dim.name!r} is {value}; expected a finite float32")
    prompt = prompt_text(observation["prompt"])
    if prompt is None:
        raise InputError(
            f"{name}: prompt must be a string, got {type(observation['prompt']).__name__}"
        )
    return prompt


@functools.lru_cache(maxsize=1024)
def _name_unread(robot: str, camera: str) -> None:
    """Says once in the log that a camera is not read."""
    logger.warning("%s: camera %r is not read: the robot's record does not name it", robot, camera)


def device(
    batch: RawBatch, layout: Layout, *, augmentation_keys: jax.Array | None = None
) -> Observation:
    """Resizes, scales and, with `augmentation_keys` (a key per row), augments; jittable."""
    result = {}
    for slot in layout.slots:
        pixels = images.resize_with_pad(
            batch.images[slot], batch.image_sizes[slot], layout.image_size
        )
        if augmentation_keys is not None:
            # By the slot, not by its place: a camera's augmentation must not depend on which other cameras there are.
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
                augmentation_keys, CAMERA_SLOTS.index(slot)
            )
            pixels = jax.vmap(
                lambda key, image, wrist=slot in WRIST_SLOTS: images.augment(
                    key, image, geometric=not wrist
                )
            )(keys, pixels)
        result[slot] = images.to_unit_range(pixels)
    return Observation(result, batch.image_masks, batch.tokens, batch.token_mask, batch.state)


def to_delta(actions: np.ndarray, states: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Actions float[..., H, A] in robot units, minus the state float[..., n] before the chunk in the dimensions declared as deltas.

    The delta of an angle that turns is the short way: from 3.1 to -3.1 rad it is 0.08, not -6.2.
    """
    deltas = actions - _delta_offset(states, embodiment)[..., None, :]
    return _turned(deltas, embodiment.readings.deltas, 0.0)


def _delta_offset(states: A, embodiment: Embodiment) -> A | np.ndarray:
    """float[..., A]: for each delta the state dimension of its name, 0 for the others."""
    places, taken = embodiment.readings.delta_places, embodiment.readings.delta_taken
    if places is None or taken is None:
        return np.zeros((*states.shape[:-1], len(embodiment.actions)), np.float32)
    return states[..., places] * taken


def in_turn(x: A, dims: Sequence[StateDim | ActionDim | None], middle: np.ndarray | float) -> A:
    """Puts the angles that turn into the turn about `middle`, and leaves what is there already as it is, to the bit.

    Args:
        x: float[..., n], of NumPy or JAX.
        dims: n dimensions; None for one that is to be left alone.
        middle: float[n], or one number for all; an angle comes to lie within half a turn of it.
    """
    return _turned(x, periods(dims), middle)


def _turned(x: A, periods: np.ndarray | None, middle: np.ndarray | float) -> A:
    """`in_turn`, of dimensions with these periods."""
    if periods is None:
        return x
    turns = (x - (middle - periods / 2)) // np.where(periods, periods, np.float32(1))
    return x - periods * turns


def in_robot_turn(actions: A, embodiment: Embodiment) -> A:
    """Actions float[..., A] with the angles that turn as the robot counts them."""
    return _turned(actions, embodiment.readings.actions, embodiment.readings.middle)


def state_to_model(state: A, robot: Robot, mode: normalize.Mode) -> A:
    """A state float[..., n] in robot units -> model units float32[..., n]."""
    statistics = robot.statistics.state
    near = _turned(state, robot.embodiment.readings.state, statistics.mean)
    return normalize.normalize(near, statistics, mode)


def actions_to_model(
    actions: np.ndarray, state: np.ndarray, robot: Robot, mode: normalize.Mode
) -> np.ndarray:
    """A chunk float[..., H, A] in robot units and the state before it -> model units float32[..., H, A]: `to_robot`'s inverse."""
    statistics = robot.statistics.actions
    chunk = to_delta(actions, np.asarray(state, np.float32), robot.embodiment)
    near = _turned(chunk, robot.embodiment.readings.targets, statistics.mean)
    return normalize.normalize(near, statistics, mode)


def action_error(predicted: np.ndarray, true: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """float[..., A]: how far two actions lie apart, angles that turn by the short way."""
    return np.abs(_turned(predicted - true, embodiment.readings.actions, 0.0))


def host_actions(samples: Sequence[Sample], robots: Sequence[Robot], layout: Layout) -> ActionBatch:
    """The samples' action chunks in model units: deltas taken, normalised, clipped, zero-padded to the model's action dimension."""
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
    """Model units float32[..., H, D] -> robot units float32[..., H, number of action dimensions]; `state` float[..., n] in robot units."""
    count = len(robot.embodiment.actions)
    chunk = normalize.denormalize(actions[..., :count], robot.statistics.actions, mode)
    if not isinstance(state, jax.Array):  # inside a compiled function it is one
        state = np.asarray(state, np.float32)
    chunk = chunk + _delta_offset(state, robot.embodiment)[..., None, :]
    return in_robot_turn(chunk, robot.embodiment)


def dimension_masks(robots: Sequence[Robot], action_dim: int) -> np.ndarray:
    """bool[B, D]: the action dimensions that each robot has."""
    counts = np.array([len(robot.embodiment.actions) for robot in robots])
    return np.arange(action_dim) < counts[:, None]


def check_robot(robot: Robot, layout: Layout) -> None:
    """Raises InputError where an embodiment does not fit the model, or its statistics are not those of its record."""
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
    record_fit.check_ranges(embodiment, statistics)


def used_slots(embodiments: Sequence[Embodiment]) -> tuple[str, ...]:
    """The camera slots that any of these robots fills, in the model's order."""
    return tuple(slot for slot in CAMERA_SLOTS if any(slot in e.cameras for e in embodiments))
