"""Encoded images: what their headers say, and their pixels. JPEG and PNG, 8 bits a channel, three channels."""

import io
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pi0_jax.data.example import ByteRanges, Payload

ColourOrder = Literal["RGB", "BGR"]

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_HEADER_BYTES = 26  # signature, length and name of IHDR, width, height, bit depth, colour type
_PNG_COLOURS = {
    0: "greyscale",
    2: "RGB",
    3: "palette",
    4: "greyscale with alpha",
    6: "RGB with alpha",
}
_JPEG = b"\xff\xd8\xff"
_JPEG_END = 0xD9FF  # the bytes FF D9, as a little-endian number
_NONE = np.empty(0, int)
_JPEG_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what decoders read
_JPEG_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC, *_JPEG_FRAME_MARKERS}
_JPEG_APP1, _EXIF = 0xE1, b"Exif\0\0"
# an EXIF tag, and its values for an image that is to be shown as it is
_ORIENTATION, _UPRIGHT = (
    0x0112,
    (0, 1),
)


class BadImageError(ValueError):
    """An image that is not an 8-bit RGB JPEG or PNG; the message says what was found."""

    def __init__(self, number: int, found: str) -> None:
        super().__init__(found)
        self.number = number  # which of the images handed over


def bad_image(where: str, error: BadImageError) -> str:
    """The message about a bad image at `where`."""
    return f"{where}: expected an 8-bit RGB JPEG or PNG, found {error}"


class SizeRange(NamedTuple):
    """Smallest and largest height and width of some images."""

    low: tuple[int, int]
    high: tuple[int, int]

    def union(self, other: "SizeRange | None") -> "SizeRange":
        """Of both; None is that of no images."""
        if other is None or self == other:
            return self
        (h0, w0), (h1, w1) = self.low, other.low
        (h2, w2), (h3, w3) = self.high, other.high
        return SizeRange((min(h0, h1), min(w0, w1)), (max(h2, h3), max(w2, w3)))


class ImageHeader(NamedTuple):
    size: SizeRange  # of one image
    start: bytes  # the bytes at an image's start that decide its height, width and kind


def read_sizes(
    payload: Payload, ranges: ByteRanges, known: ImageHeader | None
) -> tuple[SizeRange, ImageHeader]:
    """The range of the images' sizes, from the header of every one of n > 0, and the last header that was parsed.

    Images of one camera start alike, so those that start as the `known` header or as one parsed here need no parsing of their own.
    Raises BadImageError for the first image that is not an 8-bit RGB JPEG or PNG.
    """
    header = known or _parse(payload, ranges, 0)
    sizes: SizeRange | None = None
    unread = np.arange(len(ranges.offsets))
    while True:
        alike = _start_with(header.start, payload, ranges.offsets[unread], ranges.lengths[unread])
        if alike.any():
            sizes = header.size.union(sizes)
            unread = unread[~alike]
            if not unread.size:
                return sizes, header
        header = _parse(payload, ranges, int(unread[0]))


def without_end(payload: Payload, ranges: ByteRanges) -> np.ndarray:
    """int64[m]: which of n > 0 images, of two bytes or more, do not end as a JPEG or PNG does: cut off, or followed by other bytes."""
    ends = ranges.offsets + ranges.lengths
    # every place of the payload seen as a number of two bytes of its own, so that all ends are compared at once
    pairs = np.ndarray((len(payload) - 1,), "<u2", payload, strides=(1,))
    wrong = pairs[ends - 2] != _JPEG_END
    return (
        np.array([i for i in np.flatnonzero(wrong) if not _is_png_end(payload, int(ends[i]))], int)
        if wrong.any()
        else _NONE
    )


def _is_png_end(payload: Payload, end: int) -> bool:
    return bytes(payload[end - len(_PNG_END) : end]) == _PNG_END


def _start_with(
    start: bytes, payload: Payload, offsets: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """bool[n]: True where the image of `lengths` bytes at `offsets` starts with `start`."""
    count = len(start)
    if len(payload) < count:
        return np.zeros(len(offsets), bool)
    # Every place of the payload seen as `count` bytes of their own: comparing those of the images is one small copy for each.
    places = np.ndarray((len(payload) - count + 1,), f"V{count}", payload, strides=(1,))
    return (places[np.minimum(offsets, len(places) - 1)] == np.frombuffer(start, f"V{count}")) & (
        lengths >= count
    )


def _parse(payload: Payload, ranges: ByteRanges, number: int) -> ImageHeader:
    offset, length = int(ranges.offsets[number]), int(ranges.lengths[number])
    height, width, end = _header(payload, offset, length, number)
    return ImageHeader(
        SizeRange((height, width), (height, width)), bytes(payload[offset : offset + end])
    )


def _header(payload: Payload, offset: int, length: int, number: int) -> tuple[int, int, int]:
    """Height, width and the number of bytes from the image's start that decide them and its kind."""
    start = bytes(payload[offset : offset + min(length, _PNG_HEADER_BYTES)])
    if start.startswith(_JPEG):
        header = _jpeg_header(payload, offset, offset + length, number)
    elif start.startswith(_PNG):
        header = _png_header(start, number)
    else:
        raise BadImageError(number, f"{length} bytes that start with 0x{start[:8].hex() or '-'}")
    if not all(header):
        raise BadImageError(number, f"an image of {header[0]}x{header[1]} pixels")
    return header


def _png_header(data: bytes, number: int) -> tuple[int, int, int]:
    if len(data) < _PNG_HEADER_BYTES:
        raise BadImageError(number, f"a PNG cut off after {len(data)} bytes")
    bits, colour = data[24], data[25]
    if (bits, colour) != (8, 2):
        kind = _PNG_COLOURS[colour] if colour in _PNG_COLOURS else f"colour type {colour}"
        raise BadImageError(number, f"a PNG with {bits} bits a channel, {kind}")
    return (
        int.from_bytes(data[20:24], "big"),
        int.from_bytes(data[16:20], "big"),
        _PNG_HEADER_BYTES,
    )


def _jpeg_header(payload: Payload, offset: int, end: int, number: int) -> tuple[int, int, int]:
    """Walks the segments (0xFF, marker, length) up to the frame header: precision, height, width, channels."""
    position = offset + 2
    while position + 10 <= end and payload[position] == 0xFF:
        marker = payload[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _JPEG_FRAME_MARKERS:
            bits, channels = payload[position + 4], payload[position + 9]
            if (bits, channels) != (8, 3):
                raise BadImageError(
                    number, f"a JPEG with {bits} bits a channel, {channels} channels"
                )
            height, width = (
                int.from_bytes(payload[position + k : position + k + 2], "big") for k in (5, 7)
            )
            return height, width, position + 10 - offset
        elif marker in _JPEG_OTHER_FRAMES:
            raise BadImageError(
                number, f"a JPEG of an unusual coding process (marker {marker:#04x})"
            )
        else:
            start, position = (
                position + 4,
                position + 2 + int.from_bytes(payload[position + 2 : position + 4], "big"),
            )
            if (
                marker == _JPEG_APP1
                and (orientation := _exif_orientation(bytes(payload[start : min(position, end)])))
                not in _UPRIGHT
            ):
                # No decoder here turns images, and a robot's camera gives them upright.
                raise BadImageError(
                    number,
                    f"a JPEG that is to be turned when it is shown (EXIF orientation {orientation})",
                )
    raise BadImageError(number, "a JPEG without a frame header")


def _exif_orientation(segment: bytes) -> int:
    """What an APP1 segment says of it in the first of its directories; 0 if nothing. TIFF 6.0, section 2; tag 274."""
    tiff = segment.removeprefix(_EXIF)
    if len(tiff) in (len(segment), 0):
        return 0
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    entries = number(4, 4) + 2
    # of entries: tag, type, count, value
    places = range(entries, min(entries + 12 * number(entries - 2, 2), len(tiff)), 12)
    return next((number(place + 8, 2) for place in places if number(place, 2) == _ORIENTATION), 0)


def decode_image(data: Payload, order: ColourOrder) -> np.ndarray:
    """uint8[height, width, 3] in RGB order, from an encoded image whose channels are stored in `order`.

    Raises BadImageError where the bytes are not a whole 8-bit RGB JPEG or PNG.
    """
    _header(data, 0, len(data), 0)
    try:
        # the pixels that PIL gives, in two thirds of its time, and stricter with broken files
        if data[: len(_JPEG)] == _JPEG:
            return simplejpeg.decode_jpeg(data, order)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:  # its words are an object's address
        raise BadImageError(0, f"{len(data)} bytes that do not decode: a broken header") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # what is truncated, broken, or much too large
        raise BadImageError(0, f"{len(data)} bytes that do not decode: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadImageError(0, f"{pixels.dtype}{list(pixels.shape)}")
    return pixels if order == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])
