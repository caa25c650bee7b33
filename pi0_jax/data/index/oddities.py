"""Counts what is odd about a dataset's episodes and may yet be right, to tell it with the index."""

import numpy as np

from pi0_jax.data.records.episodes import IS_FIRST, IS_LAST, RawEpisode
from pi0_jax.data.records.example import ByteRanges
from pi0_jax.data.records.images import BadImageError, bad_image, decode_image
from pi0_jax.data.rows import Dataset, Standardised
from pi0_jax.errors import InputError

# Text -> of how many episodes it is true, and where the first of them is.
Told = dict[str, tuple[int, str]]

_ONE_COLOUR = 8  # grey levels: an image that spans fewer shows nothing
# An image of one colour has at most so many bytes: its tables, and a byte for so many pixels. A
# camera's image has several times as many.
_TABLE_BYTES, _PIXELS_A_BYTE = 700, 32
_DECODED = 4  # images of an episode and view that may be of one colour, and are looked at
_REMEMBERED = 256


def merge_told(told: Told, more: Told) -> None:
    """Adds `more`, which is of later episodes, to `told`."""
    for text, (count, where) in more.items():
        known, first = told[text] if text in told else (0, where)
        told[text] = known + count, first


class Oddities:
    """Counts the oddities of a shard's episodes."""

    def __init__(self, row: Dataset) -> None:
        self.told: Told = {}
        self._order = {
            view: camera.order for camera in row.cameras.values() for view in camera.views
        }
        self._one_colour: dict[bytes, bool] = {}

    def count(self, raw: RawEpisode, result: Standardised, pixels: dict[str, int]) -> None:
        """Counts what is odd about an episode that passed all checks.

        Args:
            raw: the episode as it was recorded.
            result: the episode as the rule gave it.
            pixels: view -> the number of pixels of its largest image.

        Raises:
            InputError: an image was not decoded before, and does not decode.
        """
        if not result.keep.any():
            return
        self._count_marks(raw)
        moves = bool((result.state[1:] != result.state[:-1]).any())
        if raw.steps > 2 and result.state.shape[1] and not moves:
            self.tell(raw, "the state never changes")
        for view, ranges in raw.images.items():
            self._count_repeats(raw, view, ranges, moves)
            self._count_colours(raw, view, ranges, pixels[view])

    def _count_marks(self, raw: RawEpisode) -> None:
        """Counts marks of RLDS that cannot be those of one episode."""
        for path, marks in raw.marks.items():
            if raw.steps > 1 and marks.all():
                odd = "is true at every step, and is not read"
            elif path == IS_FIRST and not marks[0]:
                odd = "is not true at the first step: an episode without its begin?"
            elif path == IS_LAST and not marks[-1]:
                odd = "is not true at the last step: an episode without its end?"
            elif path == IS_LAST and marks[:-1].any():
                odd = "is true at several steps: what follows the first is padding?"
            else:
                continue
            self.tell(raw, f"{path} {odd}")

    def _count_repeats(self, raw: RawEpisode, view: str, ranges: ByteRanges, moves: bool) -> None:
        """Counts images that are the same as the one before, though the state changes."""
        alike = ranges.lengths[1:] == ranges.lengths[:-1]
        if not moves or not alike.any():
            return
        repeats = sum(
            _encoded(raw, ranges, i) == _encoded(raw, ranges, i + 1)
            for i in np.flatnonzero(alike).tolist()
        )
        if repeats == raw.steps - 1:
            self.tell(raw, f"images of {view} are frozen: all the same while the state changes")
        elif repeats:
            self.tell(raw, f"images of {view} repeat the one before while the state changes")

    def _count_colours(self, raw: RawEpisode, view: str, ranges: ByteRanges, pixels: int) -> None:
        """Counts images of one colour. Only images of few bytes are decoded."""
        most = _TABLE_BYTES + pixels // _PIXELS_A_BYTE
        if ranges.lengths.min() > most:
            return
        small = np.flatnonzero(ranges.lengths <= most)
        looked_at = small[np.linspace(0, len(small) - 1, min(len(small), _DECODED)).astype(int)]
        if any(self._is_one_colour(raw, view, ranges, step) for step in looked_at.tolist()):
            self.tell(raw, f"images of {view} are of one colour, as black ones are")

    def _is_one_colour(self, raw: RawEpisode, view: str, ranges: ByteRanges, step: int) -> bool:
        """Returns whether an image has one colour. The answer for its bytes is remembered."""
        encoded = _encoded(raw, ranges, step)
        if encoded not in self._one_colour:
            if len(self._one_colour) >= _REMEMBERED:
                self._one_colour.clear()
            try:
                image = decode_image(encoded, self._order[view])
            except BadImageError as error:
                where = f"{raw.where}: step {step}: field {view}"
                raise InputError(bad_image(where, error)) from error
            self._one_colour[encoded] = bool(np.ptp(image) < _ONE_COLOUR)
        return self._one_colour[encoded]

    def tell(self, raw: RawEpisode, text: str) -> None:
        """Counts one oddity of one episode."""
        merge_told(self.told, {text: (1, raw.where)})


def _encoded(raw: RawEpisode, ranges: ByteRanges, step: int) -> bytes:
    offset = int(ranges.offsets[step])
    return bytes(raw.payload[offset : offset + int(ranges.lengths[step])])
