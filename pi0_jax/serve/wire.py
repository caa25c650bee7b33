"""Packs and unpacks messages: msgpack, with NumPy arrays as maps, as openpi-client 0.1.2 does.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [10, 8]}      C order
    scalar   {b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}

A message that comes in is not trusted. Only numbers and text are made of it, never objects. A
message that holds more than an observation needs is refused before it costs time or memory. The API
key travels in a header of the handshake.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from pi0_jax.embodiments.keys import shortened
from pi0_jax.errors import InputError

KEY_HEADER = "Authorization"

# How many values a message may hold, keys included.
MOST_VALUES = 10_000
MOST_LEVELS = 8
MOST_DIMENSIONS = 8
# Characters of a key. Error messages name a place by the keys on the way to it.
MOST_KEY = 200

_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_DATA, _DTYPE, _SHAPE = b"data", b"dtype", b"shape"
# The kind of a NumPy dtype -> the Python types that a scalar of it is packed as.
_NATIVE = {"b": bool, "i": int, "u": int, "f": int | float}
# The dtype of one text, which NumPy holds as an array of no dimension.
_TEXT = re.compile(r"([<>=|]?)([US])[0-9]{1,5}")
_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


def pack(value: Any) -> bytes:
    """Packs maps, lists, strings, numbers, None and NumPy arrays of numbers."""
    return msgpack.packb(value, default=_pack_array)


def unpack(message: bytes) -> Any:
    """Returns what a message holds; arrays are read-only views of the message.

    Raises:
        InputError: the message is not msgpack, is truncated, holds an array of anything but
            numbers, or is too large in any way. The error names the place in the message.
    """
    budget = _Budget()
    try:
        raw = msgpack.unpackb(
            message,
            object_pairs_hook=budget.map,
            list_hook=budget.list,
            ext_hook=_refuse,
            max_array_len=MOST_VALUES,
            max_map_len=MOST_VALUES,
        )
    except InputError:
        raise
    # msgpack raises several kinds of ValueError, and some of them have no text.
    except (ValueError, msgpack.UnpackException) as error:
        reason = shortened(error) or type(error).__name__
        raise InputError(f"message of {len(message)} bytes: expected msgpack: {reason}") from error
    return _decode(raw, ())


class _Budget:
    """Counts the values of a message while msgpack makes them, from the inside out."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            most = f"expected at most {MOST_VALUES} values, found more; numbers travel as arrays"
            raise InputError(f"message: {most}")

    def list(self, values: list[Any]) -> list[Any]:
        self._spend(len(values))
        return values

    def map(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        pairs = list(pairs)
        self._spend(2 * len(pairs))
        result: dict[Any, Any] = {}
        for key, value in pairs:
            # A key is text or bytes: msgpack takes no other keys.
            if len(key) > MOST_KEY:
                expected = f"expected keys of at most {MOST_KEY} characters"
                raise InputError(f"message: {expected}, found {len(key)}")
            if key in result:
                found = f"found {shortened(repr(key))} twice"
                raise InputError(f"message: expected every key once, {found}")
            result[key] = value
        return result


def _refuse(number: int, data: bytes) -> None:
    raise InputError(f"message: expected no extension types, found number {number}")


def _decode(value: Any, place: tuple[str, ...]) -> Any:
    if len(place) > MOST_LEVELS:
        most = f"expected at most {MOST_LEVELS} levels of maps and lists, found more"
        raise InputError(f"{_name(place)}: {most}")
    if isinstance(value, list):
        return [_decode(item, (*place, str(i))) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return _array(value, _name(place))
    if _SCALAR in value:
        return _scalar(value, _name(place))
    return {key: _decode(item, (*place, shortened(key))) for key, item in value.items()}


def _name(place: tuple[str, ...]) -> str:
    return repr("/".join(place)) if place else "message"


def _array(record: Mapping[bytes, Any], name: str) -> np.ndarray | str:
    code, data, shape = (_field(record, field, name) for field in (_DTYPE, _DATA, _SHAPE))
    if not isinstance(data, bytes):
        raise InputError(f"{name}: array data: expected bytes, found {type(data).__name__}")
    if shape == [] and isinstance(code, str) and (text := _TEXT.fullmatch(code)):
        order, kind = text.groups()
        return _text(data, order, kind, name)
    dtype = _dtype(record, name)
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or len(shape) > MOST_DIMENSIONS:
        expected = f"expected a list of at most {MOST_DIMENSIONS} sizes from 0"
        raise InputError(f"{name}: array shape: {expected}, found {shortened(shape)}")
    if (count := math.prod(shape) * dtype.itemsize) != len(data):
        mismatch = f"expected {count} bytes, found {len(data)}"
        raise InputError(f"{name}: array of {dtype}{shape}: {mismatch}")
    try:
        return np.ndarray(shape, dtype, data)
    # NumPy also refuses a shape with a size of 0 whose other sizes are too large.
    except ValueError as error:
        expected = "expected sizes that an array can have"
        raise InputError(f"{name}: array shape: {expected}, found {shape}") from error


def _text(data: bytes, order: str, kind: str, name: str) -> str:
    """Returns the text of a NumPy array of no dimension.

    Its bytes are code points of four bytes each (kind U), or UTF-8 (kind S). Zeros pad both.
    """
    wide = "utf-32-be" if order == ">" else "utf-32-le"
    try:
        return data.decode("utf-8" if kind == "S" else wide).rstrip("\0")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: expected text, found bytes that are none") from error


def _scalar(record: Mapping[bytes, Any], name: str) -> np.generic:
    dtype, data = _dtype(record, name), _field(record, _DATA, name)
    try:
        # NumPy would also make a number of some text and of a list, so the type is checked first.
        if isinstance(data, _NATIVE[dtype.kind]):
            # A number that is too large becomes infinite, and the field's own check refuses that.
            with np.errstate(over="ignore"):
                return dtype.type(data)
    except OverflowError:
        pass
    raise InputError(f"{name}: expected a {dtype}, found {shortened(repr(data))}")


def _dtype(record: Mapping[bytes, Any], name: str) -> np.dtype:
    code = _field(record, _DTYPE, name)
    if not isinstance(code, str) or not _NUMBER.fullmatch(code):
        found = f"found dtype {shortened(repr(code))}"
        raise InputError(f"{name}: expected an array of numbers, {found}")
    return np.dtype(code)


def _field(record: Mapping[bytes, Any], field: bytes, name: str) -> Any:
    if field not in record:
        raise InputError(f"{name}: array without {field.decode()!r}")
    return record[field]


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not _NUMBER.fullmatch(value.dtype.str):
        raise TypeError(f"cannot pack {value.dtype}: only arrays of numbers travel")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f"cannot pack {type(value).__name__}")


def key_header(key: str) -> str:
    """Returns what KEY_HEADER holds, in the form that openpi-client sends."""
    return f"Api-Key {key}"


def read_api_key(file: str | None) -> str | None:
    """Reads the key of --api_key_file: in a file no list of processes and no shell history shows it.

    Returns:
        One line of printable ASCII, or None without a file.

    Raises:
        InputError: the file cannot be read, or holds no key.
    """
    if file is None:
        return None
    try:
        key = Path(file).expanduser().read_text("utf-8").strip()
    # Path.expanduser raises a RuntimeError for a ~user that does not exist.
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(f"--api_key_file: {file}: {error}") from error
    if not (key.isascii() and key.isprintable() and key):
        expected = "expected one line of printable ASCII"
        found = "something else" if key else "nothing"
        raise InputError(f"--api_key_file: {file}: {expected}, found {found}")
    return key
