"""Reads encoded images: what their headers say, and their pixels.

They are JPEG and PNG files of three channels, with 8 bits a channel.
"""

import io
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pi0_jax.data.records.example import ByteRanges, Payload

if TYPE_CHECKING:
    from pi0_jax.data.rows import ColourOrder

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_HEADER_BYTES = 26  # signature, length and name of IHDR, width, height, bit depth, colour type
_PNG_COLOURS = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha"}
_PNG_COLOURS |= {6: "RGB with alpha"}
_JPEG = b"\xff\xd8\xff"
_JPEG_END = 0xD9FF  # the bytes FF D9, read as a little-endian number
_JPEG_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: what decoders read
_JPEG_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC, *_JPEG_FRAME_MARKERS}
_JPEG_APP1, _EXIF = 0xE1, b"Exif\0\0"
# An EXIF tag, and its values for an image that is to be shown as it is.
_ORIENTATION, _UPRIGHT = (0x0112, (0, 1))


class BadImageError(ValueError):
    """Is raised for an image that is not an 8-bit RGB JPEG or PNG. The message says what was found.

    Attributes:
        number: which of the given images it is.
    """

    def __init__(self, number: int, found: str) -> None:
        super().__init__(found)
        self.number = number


def bad_image(where: str, error: BadImageError) -> str:
    """Returns the message about a bad image at `where`."""
    return f"{where}: expected an 8-bit RGB JPEG or PNG, found {error}"


class SizeRange(NamedTuple):
    """Holds the smallest and the largest height and width of some images, in pixels."""

    low: tuple[int, int]
    high: tuple[int, int]

    def union(self, other: "SizeRange | None") -> "SizeRange":
        """Returns the range of both. None is the range of no images."""
        if other is None or self == other:
            return self
        (h0, w0), (h1, w1) = self.low, other.low
        (h2, w2), (h3, w3) = self.high, other.high
        return SizeRange((min(h0, h1), min(w0, w1)), (max(h2, h3), max(w2, w3)))


class ImageHeader(NamedTuple):
    """Holds what was read of an image's header."""

    size: SizeRange  # the image's own size
    start: bytes  # the bytes at the image's start that decide its height, width and kind


def read_sizes(
    payload: Payload, ranges: ByteRanges, known: ImageHeader | None
) -> tuple[SizeRange, ImageHeader]:
    """Reads the header of every image and returns the range of their sizes.

    Images of one camera start alike, so only those with another start are parsed.

    Args:
        payload: the bytes that hold the images.
        ranges: where n > 0 images lie in the payload.
        known: the last header that an earlier call parsed, which is also returned; or None.

    Raises:
        BadImageError: an image is not an 8-bit RGB JPEG or PNG. It names the first one.
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
    """Finds the images that do not end as a JPEG or PNG does: cut off, or followed by other bytes.

    There are images, each of two bytes or more. Returns their numbers, int64[m].
    """
    ends = ranges.offsets + ranges.lengths
    # A stride of one byte makes a number of every two neighbouring bytes of the payload, without a
    # copy. So the ends of all images are compared at once.
    pairs = np.ndarray((len(payload) - 1,), "<u2", payload, strides=(1,))
    wrong = pairs[ends - 2] != _JPEG_END
    size = len(_PNG_END)
    return np.array(
        [
            number
            for number in np.flatnonzero(wrong)
            if bytes(payload[ends[number] - size : ends[number]]) != _PNG_END
        ],
        int,
    )


def _start_with(
    start: bytes, payload: Payload, offsets: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Returns bool[n]: True where the image of `lengths` bytes at `offsets` starts with `start`."""
    count = len(start)
    if len(payload) < count:
        return np.zeros(len(offsets), bool)
    # A stride of one byte makes a view in which element i is the `count` bytes from byte i on. So
    # comparing the images' starts copies only these bytes.
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
    """Returns height, width and how many bytes from the image's start decide them and its kind."""
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
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    return height, width, _PNG_HEADER_BYTES


def _jpeg_header(payload: Payload, offset: int, end: int, number: int) -> tuple[int, int, int]:
    # The segments (0xFF, marker, length) are walked to the frame header, which has precision,
    # height, width and channels.
    position = offset + 2
    while position + 10 <= end and payload[position] == 0xFF:
        marker = payload[position + 1]
        if marker == 0xFF:
            # It is a fill byte.
            position += 1
        elif marker in _JPEG_FRAME_MARKERS:
            bits, channels = payload[position + 4], payload[position + 9]
            if (bits, channels) != (8, 3):
                found = f"a JPEG with {bits} bits a channel, {channels} channels"
                raise BadImageError(number, found)
            height, width = (
                int.from_bytes(payload[position + k : position + k + 2], "big") for k in (5, 7)
            )
            return height, width, position + 10 - offset
        elif marker in _JPEG_OTHER_FRAMES:
            found = f"a JPEG of an unusual coding process (marker {marker:#04x})"
            raise BadImageError(number, found)
        else:
            start = position + 4
            position = start - 2 + int.from_bytes(payload[start - 2 : start], "big")
            if marker != _JPEG_APP1:
                continue
            turn = _exif_orientation(bytes(payload[start : min(position, end)]))
            if turn not in _UPRIGHT:
                # No decoder here turns images, and the images of a robot's camera are upright.
                found = f"a JPEG that is to be turned when it is shown (EXIF orientation {turn})"
                raise BadImageError(number, found)
    raise BadImageError(number, "a JPEG without a frame header")


def _exif_orientation(segment: bytes) -> int:
    """Returns the EXIF orientation (1 to 8) in a JPEG's APP1 segment; 0 if it states none.

    Only the segment's first directory is read.

    Source: TIFF 6.0, section 2; tag 274.
    """
    tiff = segment.removeprefix(_EXIF)
    if len(tiff) in (len(segment), 0):
        return 0
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    entries = number(4, 4) + 2
    # An entry has 12 bytes: tag (2), type (2), count (4) and value (4).
    places = range(entries, min(entries + 12 * number(entries - 2, 2), len(tiff)), 12)
    return next((number(place + 8, 2) for place in places if number(place, 2) == _ORIENTATION), 0)


def decode_image(data: Payload, order: "ColourOrder") -> np.ndarray:
    """Decodes an image.

    Args:
        data: a whole JPEG or PNG file.
        order: the order in which the file stores the channels.

    Returns:
        uint8[height, width, 3], in RGB order.

    Raises:
        BadImageError: the bytes are not a whole 8-bit RGB JPEG or PNG.
    """
    _header(data, 0, len(data), 0)
    try:
        # The pixels are the same as PIL's. This takes two thirds of the time and is stricter with
        # broken files.
        if data[: len(_JPEG)] == _JPEG:
            return simplejpeg.decode_jpeg(data, order)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:
        # Its own message holds only an object's address.
        raise BadImageError(0, f"{len(data)} bytes that do not decode: a broken header") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # The image is truncated, broken, or much too large.
        raise BadImageError(0, f"{len(data)} bytes that do not decode: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadImageError(0, f"{pixels.dtype}{list(pixels.shape)}")
    return pixels if order == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])
