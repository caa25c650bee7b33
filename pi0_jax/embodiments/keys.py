"""Converts between a RawObservation and the keys that clients or environments use.

A robot's clients send observations under keys of their own, and so does an environment. The
embodiment's record says which keys these are.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi0_jax.embodiments import Embodiment
from pi0_jax.embodiments.record import ClientKeys
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation, prompt_text

logger = logging.getLogger(__name__)

PROMPT = "prompt"
MOST_PIXELS = 4096  # of an image's height or width
MOST_CHARACTERS = 2000  # of a prompt
_MOST_NAMED = 100  # keys that are not read


def to_observation(
    message: Any,
    embodiment: Embodiment,
    default_prompt: str | None = None,
    *,
    unread: "UnreadKeys | None" = None,
) -> RawObservation:
    """Checks an observation that a client or an environment gave, and returns it as RawObservation.

    Args:
        message: a mapping from keys to values. Mappings within it count as keys joined by "/".
        embodiment: the robot's record, which names the keys.
        default_prompt: the prompt of messages that carry none.
        unread: logs keys that the record does not name, and that are not read. None refuses them.

    Raises:
        InputError: a key is missing or not expected, or its value has a wrong type, dtype, shape or
            range, or is not finite. The message names the key.
    """
    keys, values = embodiment.keys, flat(message)
    if PROMPT not in values and default_prompt is not None:
        values[PROMPT] = default_prompt
    wanted = [*keys.cameras.values(), *(key for key, _ in keys.state), PROMPT]
    for key in wanted:
        if key not in values:
            found = shortened(", ".join(values), 300) or "nothing"
            raise InputError(f"{key!r} is missing; expected {', '.join(wanted)}; found {found}")
    others = [key for key in values if key not in wanted and key not in keys.unread]
    if others:
        if unread is None:
            raise InputError(
                f"{shortened(repr(others[0]))} is not expected; expected {', '.join(wanted)}"
            )
        unread.name(others)
    return {
        "images": {
            camera: _image(values[key], key, keys.channel_first)
            for camera, key in keys.cameras.items()
        },
        "state": _state(values, embodiment),
        "prompt": check_prompt(values[PROMPT], repr(PROMPT)),
    }


class UnreadKeys:
    """Says in the log, once for each, which keys come and are not read.

    It is not for several threads at once.
    """

    def __init__(self, robot: str) -> None:
        self._robot = robot
        self._named: set[str] = set()

    def name(self, keys: Sequence[str]) -> None:
        # The number of names is limited, so that no client can fill the log or the memory.
        """Logs the keys that have not been logged before."""
        room = _MOST_NAMED - len(self._named)
        if new := [key for key in keys if key not in self._named][:room]:
            self._named.update(new)
            names = ", ".join(shortened(key) for key in new)
            logger.warning(
                "%s: not read, since its record does not name them: %s", self._robot, names
            )


def to_message(observation: RawObservation, keys: ClientKeys) -> dict[str, Any]:
    """Returns what a client sends for an observation. It is the inverse of `to_observation`.

    Args:
        observation: in the robot's own units.
        keys: how the robot's clients name the parts.
    """
    images = {
        key: np.moveaxis(observation["images"][camera], -1, 0)
        if keys.channel_first
        else observation["images"][camera]
        for camera, key in keys.cameras.items()
    }
    counts = [count for _, count in keys.state]
    # np.split wants the places between the parts, so the last sum is left out.
    parts = (
        np.split(np.asarray(observation["state"], np.float32), np.cumsum(counts)[:-1])
        if counts
        else []
    )
    return (
        images
        | {key: part for (key, _), part in zip(keys.state, parts, strict=True)}
        | {PROMPT: prompt_text(observation["prompt"])}
    )


def shortened(value: object, most: int = 80) -> str:
    """Returns a value as one line of at most `most` characters, since input may be long."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def flat(message: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a mapping of mappings as one dict, with keys joined by "/".

    Args:
        message: a mapping.
        prefix: what all keys begin with.

    Raises:
        InputError: `message` is no mapping, a key is no text, or two keys are the same.
    """
    if not isinstance(message, Mapping):
        raise InputError(f"expected an observation, a map, found {_kind(message)}")
    result: dict[str, Any] = {}
    for key, value in message.items():
        if not isinstance(key, str):
            raise InputError(f"expected keys that are text, found {shortened(repr(key))}")
        inner = (
            flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
        )
        for name in inner:
            if name in result:
                raise InputError(f"{shortened(repr(name))} comes twice")
        result |= inner
    return result


def _image(value: Any, key: str, channel_first: bool) -> np.ndarray:
    """Checks an image and returns it as uint8[height, width, 3]."""
    expected = "uint8[3, height, width]" if channel_first else "uint8[height, width, 3]"
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != np.uint8
        or value.ndim != 3
        or value.shape[0 if channel_first else 2] != 3
    ):
        raise InputError(f"{key!r}: expected {expected} RGB, found {_kind(value)}")
    image = np.moveaxis(value, 0, -1) if channel_first else value
    if min(image.shape[:2]) < 1 or max(image.shape[:2]) > MOST_PIXELS:
        raise InputError(
            f"{key!r}: expected {expected} of 1 to {MOST_PIXELS} pixels a side, found {_kind(value)}"
        )
    return image


def _state(values: Mapping[str, Any], embodiment: Embodiment) -> np.ndarray:
    """Checks the parts of a state and returns them side by side, float32[n]."""
    parts, start = [], 0
    for key, count in embodiment.keys.state:
        part = _numbers(values[key], key, count)
        for dim, number in zip(embodiment.state[start : start + count], part, strict=True):
            if not abs(number) <= np.finfo(np.float32).max:
                raise InputError(
                    f"{key!r}: expected finite float32 numbers, found {number} for {dim.name}"
                )
        parts.append(part.astype(np.float32))
        start += count
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _numbers(value: Any, key: str, count: int) -> np.ndarray:
    """Returns the numbers of one key as float64[count]."""
    if isinstance(value, list) and all(
        isinstance(item, int | float | np.number) and not isinstance(item, bool) for item in value
    ):
        value = np.array([float(item) for item in value])
    elif count == 1 and isinstance(value, int | float | np.number) and not isinstance(value, bool):
        value = np.array([float(value)])
    if (
        not isinstance(value, np.ndarray)
        or value.dtype.kind not in "fiu"
        or value.shape not in ((count,), () if count == 1 else (count,))
    ):
        raise InputError(f"{key!r}: expected float32[{count}], found {_kind(value)}")
    return value.astype(np.float64).reshape(count)


def check_prompt(value: Any, name: str) -> str:
    """Checks that a prompt is an instruction, and returns its text.

    Args:
        value: the prompt.
        name: what holds it, for messages.

    Raises:
        InputError: the prompt is no text, is empty, or has more than MOST_CHARACTERS characters.
    """
    text = prompt_text(value)
    if text is None:
        raise InputError(f"{name}: expected text, found {_kind(value)}")
    if not text.strip():
        raise InputError(f"{name}: expected an instruction, found empty text")
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"{name}: expected at most {MOST_CHARACTERS} characters, found {len(text)}"
        )
    return text


def _kind(value: Any) -> str:
    """Returns dtype and shape of an array, or the type of any other value, for messages."""
    return (
        f"{value.dtype}{list(value.shape)}"
        if isinstance(value, np.ndarray | np.generic)
        else type(value).__name__
    )
