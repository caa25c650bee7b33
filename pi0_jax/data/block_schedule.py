"""Deals one dataset's episodes to the lanes of the local order (block_order.py).

It decides which lane has which episodes, and when each of them is due.

    a lane's deck of a dataset, endlessly          epoch 0             epoch 1
    episodes, each epoch shuffled                | c7  | c2 | c5    | c5    | c7  | c2 | ...
    their kept frames, end to end                0     6    10      18      26    32   36
    due when so many frames of the dataset are   . x   . x  .  x    .  x    . x   . x

Each x is a third of the way through its episode. The dataset's weight asks for an even flow of
frames. An episode is due when this flow reaches a fixed fraction of it.
"""

import functools
from typing import NamedTuple

import numpy as np

from pi0_jax.data.columns import SPLITS
from pi0_jax.data.index import Index
from pi0_jax.data.permutation import hashes, key, permute

_MOST_UNEVEN = 1.05  # the largest deck's frames over the smallest's
_ONE = 1 << 32


class Dealt(NamedTuple):
    """Holds one dataset's episodes with kept frames, as decks.

    Attributes:
        episodes: int32[E], deck after deck.
        ends: int64[decks], where each deck ends.
        longest: the largest number of kept frames of an episode.
        largest_record: bytes of the largest record.
        bytes_per_frame: bytes of all records over all kept frames.
    """

    episodes: np.ndarray
    ends: np.ndarray
    longest: int
    largest_record: int
    bytes_per_frame: float


def deal(index: Index, split: str, seed: int, lanes: int) -> Dealt:
    """Deals the episodes of a split into as many even decks as divide the lanes.

    Episodes are dealt from the longest to the shortest, to and fro.

    Args:
        index: the dataset's index.
        split: "train" or "val".
        seed: decides the order of episodes of the same length.
        lanes: the number of lanes.
    """
    columns = index.episodes
    episodes = np.flatnonzero((columns["split"] == SPLITS.index(split)) & (columns["kept"] > 0))
    kept, sizes = columns["kept"][episodes], columns["bytes"][episodes]
    order = np.lexsort((hashes(key(seed, "deal", index.name), episodes), -kept))
    for decks in (count for count in range(lanes, 0, -1) if lanes % count == 0):
        turn = np.arange(len(order)) % (2 * decks)
        # To and fro, for three decks: 0 1 2 2 1 0 0 1 2 ...
        deck = np.minimum(turn, 2 * decks - 1 - turn)
        frames = np.bincount(deck, kept[order], decks)
        if frames.max() <= _MOST_UNEVEN * frames.min():
            break
    grouped = np.argsort(deck, kind="stable")
    ends = np.cumsum(np.bincount(deck, minlength=decks))
    return Dealt(
        episodes[order][grouped].astype(np.int32),
        ends,
        int(kept.max()),
        int(sizes.max()),
        float(sizes.sum() / kept.sum()),
    )


class Due(NamedTuple):
    """Holds m episodes of one deck, in the order in which they come.

    Attributes:
        episode: int64[m].
        epoch: int64[m].
        before: int64[m], the deck's kept frames before each, with those of earlier epochs.
    """

    episode: np.ndarray
    epoch: np.ndarray
    before: np.ndarray


class Deck:
    """Holds one dataset's episodes in one lane.

    They are an endless row of frames, cut into episodes. Each epoch shuffles the episodes.
    """

    def __init__(self, index: Index, dealt: Dealt, seed: int, lane: int, lanes: int) -> None:
        """Takes the lane's deck. Neighbouring lanes share one if decks are fewer than lanes."""
        number = lane * len(dealt.ends) // lanes
        self.longest = dealt.longest
        # int32[e]
        self._episodes = dealt.episodes[
            dealt.ends[number - 1] if number else 0 : dealt.ends[number]
        ]
        self._kept = index.episodes["kept"]  # int32[all episodes], mapped
        self._frames = int(self._kept[self._episodes].sum())
        self._key = key(seed, "deck", index.name, lane)
        # The lanes' fractions are evenly spread and in random order. So rare datasets are due in
        # one lane after the other. The fraction is a whole number of 2^-32, so that all machines
        # compute the same.
        turn = int(permute(np.array([lane]), lanes, np.uint64(key(seed, "turn", index.name)))[0])
        self._fraction = (turn * _ONE + key(seed, "fraction", index.name) % _ONE) // lanes
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffle)

    def due(self, now: int, then: int) -> Due:
        """Returns the episodes that are due in [now, then), counted in frames of the dataset."""
        (first_epoch, first), (last_epoch, last) = self._place(now), self._place(then)
        parts = []
        for epoch in range(first_epoch, last_epoch + 1):
            order, starts = self._epoch(epoch)
            chosen = np.arange(
                first if epoch == first_epoch else 0, last if epoch == last_epoch else len(order)
            )
            parts.append(
                Due(
                    order[chosen].astype(np.int64),
                    np.full(len(chosen), epoch),
                    epoch * self._frames + starts[chosen],
                )
            )
        return Due(*map(np.concatenate, zip(*parts, strict=True)))

    def frames_before(self, now: int) -> int:
        """Returns how many frames the episodes have that are due before `now`.

        The number is within `longest` of `now`.
        """
        epoch, place = self._place(now)
        return epoch * self._frames + int(self._epoch(epoch)[1][place])

    def when(self, due: Due) -> np.ndarray:
        """Returns int64[m]: when each episode is due, counted in frames of the dataset."""
        return due.before + (self._kept[due.episode].astype(np.int64) * self._fraction >> 32)

    def _place(self, now: int) -> tuple[int, int]:
        """Returns the epoch of frame `now`, and how many of its episodes are due earlier."""
        epoch, rest = divmod(now, self._frames)
        starts = self._epoch(epoch)[1]
        place = int(np.searchsorted(starts, rest, side="right")) - 1
        start, end = starts[place : place + 2].tolist()
        # The episode in which `now` lies counts too if its fraction is reached.
        return epoch, place + (start + ((end - start) * self._fraction >> 32) < rest)

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the episodes in the order of this epoch, and the frames before each of them.

        Returns:
            int32[e], the episodes; int64[e + 1], the frames before each, and at the end all of
            them.
        """
        order = self._episodes[
            np.argsort(hashes(key(self._key, epoch), self._episodes), kind="stable")
        ]
        return order, np.concatenate([[0], np.cumsum(self._kept[order], dtype=np.int64)])
