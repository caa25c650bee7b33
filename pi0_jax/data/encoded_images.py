"""Encoded images: what their headers say, and their pixels. JPEG and PNG, 8 bits a channel, three channels."""

import io
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pi0_jax.data.example import ByteRanges

ColourOrder = Literal["RGB", "BGR"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 26  # signature, length and name of IHDR, width, height, bit depth, colour type
_PNG_COLOURS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGB with alpha"}
_JPEG = b"\xff\xd8\xff"
_JPEG_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what decoders read
_JPEG_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC, *_JPEG_FRAME_MARKERS}


class BadImageError(ValueError):
    """An image that is not an 8-bit RGB JPEG or PNG; the message says what was found."""

    def __init__(self, number: int, found: str) -> None:
        super().__init__(found)
        self.number = number  # which of the images handed over


class _Header(NamedTuple):
    height: int
    width: int
    end: int  # number of bytes from the image's start that decide height, width and kind


def image_sizes(payload: bytes, ranges: ByteRanges) -> np.ndarray:
    """int32[n, 2]: height and width of every image, from its header.

    Images of one camera start alike, so those whose first bytes equal the first image's need no parsing of their own.
    Raises BadImageError for the first image that is not an 8-bit RGB JPEG or PNG.
    """
    first = _header(payload, int(ranges.offsets[0]), int(ranges.lengths[0]), 0)
    sizes = np.tile(np.array([first.height, first.width], np.int32), (len(ranges.offsets), 1))
    for i in np.flatnonzero(~_start_alike(payload, ranges, first.end)):
        header = _header(payload, int(ranges.offsets[i]), int(ranges.lengths[i]), int(i))
        sizes[i] = header.height, header.width
    return sizes


def _start_alike(payload: bytes, ranges: ByteRanges, count: int) -> np.ndarray:
    """bool[n]: True where an image's first `count` bytes equal the first image's."""
    alike = ranges.lengths >= count
    data = np.frombuffer(payload, np.uint8)
    starts = data[ranges.offsets[alike][:, None] + np.arange(count)]  # uint8[m, count]
    alike[alike] = (starts == starts[0]).all(axis=1)
    return alike


def _header(payload: bytes, offset: int, length: int, number: int) -> _Header:
    if payload.startswith(_JPEG, offset, offset + length):
        return _jpeg_header(payload, offset, offset + length, number)
    if payload.startswith(_PNG, offset, offset + length):
        return _png_header(payload[offset : offset + length], number)
    raise BadImageError(number, f"{length} bytes that start with 0x{payload[offset : offset + min(length, 8)].hex() or '-'}")


def _png_header(data: bytes, number: int) -> _Header:
    if len(data) < _PNG_HEADER_BYTES:
        raise BadImageError(number, f"a PNG cut off after {len(data)} bytes")
    bits, colour = data[24], data[25]
    if (bits, colour) != (8, 2):
        kind = _PNG_COLOURS[colour] if colour in _PNG_COLOURS else f"colour type {colour}"
        raise BadImageError(number, f"a PNG with {bits} bits a channel, {kind}")
    return _Header(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), _PNG_HEADER_BYTES)


def _jpeg_header(payload: bytes, offset: int, end: int, number: int) -> _Header:
    """Walks the segments (0xFF, marker, length) up to the frame header: precision, height, width, channels."""
    position = offset + 2
    while position + 10 <= end and payload[position] == 0xFF:
        marker = payload[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _JPEG_FRAME_MARKERS:
            bits, channels = payload[position + 4], payload[position + 9]
            if (bits, channels) != (8, 3):
                raise BadImageError(number, f"a JPEG with {bits} bits a channel, {channels} channels")
            height, width = (int.from_bytes(payload[position + k : position + k + 2], "big") for k in (5, 7))
            return _Header(height, width, position + 10 - offset)
        elif marker in _JPEG_OTHER_FRAMES:
            raise BadImageError(number, f"a JPEG of an unusual coding process (marker {marker:#04x})")
        else:
            position += 2 + int.from_bytes(payload[position + 2 : position + 4], "big")
    raise BadImageError(number, "a JPEG without a frame header")


def decode_image(data: bytes, order: ColourOrder) -> np.ndarray:
    """uint8[height, width, 3] in RGB order, from an encoded image whose channels are stored in `order`.

    Raises BadImageError where the bytes are not a whole 8-bit RGB JPEG or PNG.
    """
    _header(data, 0, len(data), 0)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:  # what PIL raises for truncated and for broken files
        raise BadImageError(0, f"{len(data)} bytes that do not decode: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadImageError(0, f"{pixels.dtype}{list(pixels.shape)}")
    return pixels if order == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])
