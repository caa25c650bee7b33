"""Serialises RLDS episodes as tf.train.Example without TensorFlow.

    Example            field 1: Features
    Features           field 1, once a name, in the names' order: {1: name, 2: Feature}
    Feature            1: BytesList, 2: FloatList or 3: Int64List
    a step's feature   "steps/observation/state": the values of all steps, one after the other

TFDS does the same through TensorFlow, which takes longer than a small simulator takes for the
episode. The bytes are the same, and worker processes that have loaded OpenGL can make them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pi0_jax.data.write import ArrayFeature, Features, ImageFeature, TextFeature, image_file
from pi0_jax.errors import InputError

_LENGTH_DELIMITED = 2
_BYTES, _FLOATS, _INTS = 1, 2, 3  # the field of a Feature


def serialised(steps: Features, metadata: Features, episode: Mapping[str, Any]) -> bytes:
    """Returns an episode as TFDS serialises it, its map in the order of the names.

    Args:
        steps: features of a step. Arrays have fixed sizes.
        metadata: features of `episode_metadata`.
        episode: {"steps": [step, ...], "episode_metadata": {...}}, as write_rlds takes it.

    Raises:
        InputError: a value does not have its feature's shape, or the feature is of another kind.
    """
    values: dict[str, bytes] = {}
    for name, feature, found in _leaves(steps, episode["steps"], "steps"):
        values[name] = _feature(name, feature, found)
    about = [episode["episode_metadata"]] if metadata else []
    for name, feature, found in _leaves(metadata, about, "episode_metadata"):
        values[name] = _feature(name, feature, found)
    entries = (
        _field(1, _field(1, name.encode()) + _field(2, values[name])) for name in sorted(values)
    )
    return _field(1, b"".join(entries))


def _leaves(
    features: Features, items: Sequence[Any], place: str
) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yields every feature with its name and its values in all items."""
    for name, feature in features.items():
        path, found = f"{place}/{name}", [item[name] for item in items]
        if isinstance(feature, Mapping):
            yield from _leaves(feature, found, path)
        else:
            yield path, feature, found


def _feature(name: str, feature: Any, found: Sequence[Any]) -> bytes:
    match feature:
        case ImageFeature():
            files = (image_file(feature, image) for image in found)
            return _list(_BYTES, b"".join(_field(1, file) for file in files))
        case TextFeature():
            return _list(_BYTES, b"".join(_field(1, text.encode()) for text in found))
        case ArrayFeature():
            return _numbers(name, feature, found)
        case _:
            raise InputError(f"{name}: expected an image, an array or a text, found {feature!r}")


def _numbers(name: str, feature: ArrayFeature, found: Sequence[Any]) -> bytes:
    """Returns the packed list of numbers: float32 as it is, whole numbers and flags as varints."""
    dtype = np.dtype(feature.dtype)
    rows = [np.asarray(one, dtype) for one in found]
    for step, row in enumerate(rows):
        if row.shape != tuple(feature.shape):
            expected = f"expected {list(feature.shape)}, found {list(row.shape)}"
            raise InputError(f"{name}, step {step}: {expected}")
    flat = np.array(rows, dtype).ravel()
    if dtype == np.float32:
        return _list(_FLOATS, _field(1, flat.astype("<f4").tobytes()))
    if dtype.kind in "bi":
        return _list(_INTS, _field(1, b"".join(map(_varint, flat.tolist()))))
    raise InputError(f"{name}: expected float32, whole numbers or flags, found {dtype}")


def _list(kind: int, content: bytes) -> bytes:
    return _field(kind, content)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Returns a whole number in base 128, the lowest digits first; negative ones as 64 bits."""
    value, digits = int(value) & (1 << 64) - 1, bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
