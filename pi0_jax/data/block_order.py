"""Draws frames in the local order, for slow disks and remote storage.

Whole records are read, in blocks of episodes, into a bounded pool.

    rows of a batch        0 1 | 2 3 | 4 5 | 6 7           a row belongs to a lane, a host owns
    lane                    0     1     2     3            whole lanes

    blocks of lane 2       | a7 c2 a1 | b5 a9 a4 c8 | a3 ...      whole episodes: a7 is episode 7
                                                                  of dataset a
    its samples            | a c a a c a ... | b a ...            the kept frames of a block,
                                                                  shuffled
    its pool               | this block | the next, read ahead |

Everything is a pure function of (seed, step). To compute a step, no earlier step is needed:

- The episodes of a dataset are dealt to lanes, as decks of equally many frames. The decks are equal
  to 5%, and the frames of a smaller deck come up more often by that much. If the episodes are too
  few for this, there are fewer decks, and neighbouring lanes share one, each in an order of its
  own. A lane goes through its deck again and again, shuffled anew. In each such epoch every record
  is read once, and every kept frame is drawn once.
- Datasets are interleaved by whole episodes. A lane's clock runs in samples. At time t, w t frames
  are due of a dataset whose share is w. An episode comes when the flow reaches a fraction of it:
  one fraction in one lane, another in the next. In a lane, a dataset is at most its longest episode
  away from its share (and what the shuffle of a block moves). Over all lanes it is a few episodes
  away, because rare datasets come up in one lane after the other.
- The clock is cut into stretches of a fixed number of samples, each of which is known from its
  number alone. A stretch is cut into blocks of at most half the pool's bytes. An episode that is
  larger makes a block of its own. Lanes begin their stretches at different times.

Memory: a lane holds two blocks of records, so at most its pool, or twice the largest record where
that is more (`bound_bytes`). Beside them there are the encoded images of the batches in the making,
and 24 bytes for each episode of this host's lanes. A run that is resumed reads again the block in
which the step lies.

Mixing: a batch is drawn from one block of every lane. `mixture.mixing` measures it. With 35
datasets of the sizes of the public ones, 256 rows, 32 lanes and 512 MB a lane, a batch has 183
different episodes of 31 datasets. In uniform order it has 256 episodes of 35 datasets.
"""

import bisect
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pi0_jax.data.block_schedule import Deck, deal
from pi0_jax.data.mixture import PERIOD, Draw, Frames, Mixture, host_rows
from pi0_jax.data.permutation import hashes, key
from pi0_jax.errors import InputError

# The last block of a stretch is small. The more blocks a stretch has, the rarer such a block is.
# The number is approximate.
_BLOCKS_PER_STRETCH = 4

_Records = dict[tuple[int, int], Future[bytes]]  # (dataset, episode) -> payload


class LocalOrder:
    """Is an `Order` (mixture.py) that reads whole records, each once for all of its frames."""

    def __init__(self, mixture: Mixture, batch_size: int, *, lanes: int, pool_bytes: int) -> None:
        """Deals the mixture's episodes to lanes.

        Args:
            mixture: the datasets and their shares.
            batch_size: rows of the global batch.
            lanes: the number of lanes, which divides the batch.
            pool_bytes: how many encoded bytes each lane may hold.

        Raises:
            InputError: `lanes` does not divide the batch, or `pool_bytes` is not positive.
        """
        if lanes < 1 or batch_size % lanes:
            raise InputError(
                f"{lanes} lanes: expected a number that divides the batch of {batch_size} rows"
            )
        if pool_bytes < 1:
            raise InputError(f"a pool of {pool_bytes} bytes a lane: expected a positive number")
        self.mixture = mixture
        self.batch_size = batch_size
        self.lanes = lanes
        self._rows_per_lane = batch_size // lanes
        self._block_bytes = pool_bytes // 2
        self._dealt = [deal(index, mixture.split, mixture.seed, lanes) for index in mixture.indices]
        mean = sum(
            share * dealt.bytes_per_frame
            for share, dealt in zip(mixture.shares.values(), self._dealt, strict=True)
        )
        self._stretch = max(1, int(_BLOCKS_PER_STRETCH * self._block_bytes / mean))  # samples

    @property
    def bound_bytes(self) -> int:
        """Returns how many bytes of records a lane holds at most."""
        return 2 * max(self._block_bytes, *(dealt.largest_record for dealt in self._dealt))

    def rows(self, host: int, hosts: int) -> range:
        """Returns the rows of one of `hosts` hosts. See `Order.rows`."""
        if hosts < 1 or self.lanes % hosts:
            raise InputError(
                f"{hosts} hosts: expected a number that divides the {self.lanes} lanes"
            )
        return host_rows(self.batch_size, host, hosts)

    def frames(self, start: int, stop: int, rows: Sequence[int]) -> Iterator[Frames]:
        """Yields the frames of steps start .. stop - 1. See `Order.frames`."""
        lanes = [
            _samples(self._lane(number), start * self._rows_per_lane)
            for number in self._lanes_of(rows)
        ]
        for _ in range(start, stop):
            drawn = [
                sample for lane in lanes for sample in itertools.islice(lane, self._rows_per_lane)
            ]
            yield Frames(*np.array(drawn, np.int64).reshape(-1, 2).T)

    def draws(
        self, start: int, stop: int, rows: Sequence[int]
    ) -> Generator[list[Draw], None, None]:
        """Yields the same rows, to be read. See `Order.draws`."""
        numbers = self._lanes_of(rows)
        readers = ThreadPoolExecutor(len(numbers), thread_name_prefix="lane")
        try:
            lanes = [
                _read(self._lane(number), start * self._rows_per_lane, readers)
                for number in numbers
            ]
            for step in range(start, stop):
                choices = self.mixture.choices(
                    step * self.batch_size + np.asarray(rows, np.int64)
                ).tolist()
                yield [
                    _draw(self.mixture, next(lanes[i // self._rows_per_lane]), choice)
                    for i, choice in enumerate(choices)
                ]
        finally:
            readers.shutdown(cancel_futures=True)

    def _lanes_of(self, rows: Sequence[int]) -> list[int]:
        """Returns the lanes that make up `rows`.

        Raises:
            InputError: the rows are not whole lanes.
        """
        lanes = sorted({row // self._rows_per_lane for row in rows})
        if list(rows) != [
            lane * self._rows_per_lane + i for lane in lanes for i in range(self._rows_per_lane)
        ]:
            raise InputError(
                f"rows {list(rows)}: expected whole lanes of {self._rows_per_lane} rows each, ascending"
            )
        return lanes

    def _lane(self, number: int) -> "_Lane":
        """Returns the lane of this number."""
        mixture = self.mixture
        decks = [
            Deck(index, dealt, mixture.seed, number, self.lanes)
            for index, dealt in zip(mixture.indices, self._dealt, strict=True)
        ]
        return _Lane(
            mixture,
            decks,
            number,
            self._stretch,
            number * self._stretch // self.lanes,
            self._block_bytes,
        )


class _Block(NamedTuple):
    """Holds n samples of a lane, in order.

    Attributes:
        first: the number in the lane of the first of them.
        dataset: int64[n].
        episode: int64[n].
        frame: int64[n].
    """

    first: int
    dataset: np.ndarray
    episode: np.ndarray
    frame: np.ndarray


class _Lane(NamedTuple):
    """Decides what a lane draws, without reading it.

    Attributes:
        mixture: the datasets and their shares.
        decks: one for each dataset, in the order of the mixture's datasets.
        number: the lane's number.
        stretch: samples of a stretch, on average.
        offset: by so many samples the first stretch is shorter.
        block_bytes: the largest size of a block.
    """

    mixture: Mixture
    decks: list[Deck]
    number: int
    stretch: int
    offset: int
    block_bytes: int

    def blocks(self, position: int) -> Iterator[_Block]:
        """Yields the block that holds the lane's sample number `position`, and the ones after it.

        There is no last one.
        """
        for number in itertools.count(self._stretch_of(position)):
            first = self._samples_before(number)
            for part in self._parts(number):
                count = int(part.kept.sum())
                if first + count > position:
                    yield self._block(first, part)
                first += count

    def _due_before(self, stretch: int) -> list[int]:
        """Returns for each dataset how many frames are due before the stretch begins."""
        clock = max(0, stretch * self.stretch - self.offset)
        return [clock * weight // PERIOD for weight in self.mixture.weights.tolist()]

    def _samples_before(self, stretch: int) -> int:
        """Returns how many samples the lane draws before the stretch begins."""
        return sum(
            deck.frames_before(due)
            for deck, due in zip(self.decks, self._due_before(stretch), strict=True)
        )

    def _stretch_of(self, position: int) -> int:
        # _samples_before differs from the clock by at most this, so only a few stretches near the
        # clock's are searched.
        """Returns the stretch in which the sample number `position` lies."""
        slack = sum(deck.longest + 1 for deck in self.decks)
        low, high = (
            max(0, (position - slack) // self.stretch),
            (position + slack) // self.stretch + 3,
        )
        return low + bisect.bisect_right(range(low, high), position, key=self._samples_before) - 1

    def _parts(self, stretch: int) -> Iterator["_Episodes"]:
        """Yields the episodes of a stretch as they are due, in runs of at most `block_bytes`."""
        times = zip(
            self.decks, self._due_before(stretch), self._due_before(stretch + 1), strict=True
        )
        dues = [deck.due(now, then) for deck, now, then in times]
        # Frames of a dataset over its weight are the lane's clock, in which all datasets compare.
        clock = [
            deck.when(due) / weight
            for deck, due, weight in zip(self.decks, dues, self.mixture.weights, strict=True)
        ]
        columns = [index.episodes for index in self.mixture.indices]
        whole = _Episodes(
            dataset=np.repeat(np.arange(len(dues)), [len(due.episode) for due in dues]),
            episode=np.concatenate([due.episode for due in dues]),
            epoch=np.concatenate([due.epoch for due in dues]),
            kept=np.concatenate(
                [column["kept"][due.episode] for column, due in zip(columns, dues, strict=True)]
            ),
            bytes=np.concatenate(
                [column["bytes"][due.episode] for column, due in zip(columns, dues, strict=True)]
            ),
        )
        order = np.argsort(np.concatenate(clock), kind="stable")
        for run in _runs(whole.bytes[order], self.block_bytes):
            yield _Episodes(*(column[order[run]] for column in whole))

    def _block(self, first: int, part: "_Episodes") -> _Block:
        """Shuffles the kept frames of a block's episodes.

        The places of a dataset are anywhere in the block. Among them its frames come epoch by
        epoch.
        """
        frame = np.concatenate(
            [
                self._kept_frames(*row)
                for row in zip(part.dataset, part.episode, part.kept, strict=True)
            ]
        )
        dataset, episode, epoch = (
            np.repeat(column, part.kept) for column in (part.dataset, part.episode, part.epoch)
        )
        count = len(frame)
        random = hashes(key(self.mixture.seed, "block", self.number, first), np.arange(2 * count))
        shuffled = dataset[np.argsort(random[:count], kind="stable")]
        # The places of the first dataset come first, then those of the second, and so on. The
        # frames are sorted the same way below, and within a dataset by epoch and then at random.
        places = np.argsort(shuffled, kind="stable")
        order = np.empty(count, np.int64)
        order[places] = np.lexsort((random[count:], epoch, dataset))
        return _Block(first, dataset[order], episode[order], frame[order])

    def _kept_frames(self, dataset: int, episode: int, kept: int) -> np.ndarray:
        """Returns the kept frames of an episode."""
        index = self.mixture.indices[dataset]
        frames = index.frames(self.mixture.split)
        first = np.searchsorted(frames, index.episodes["start"][episode])
        return frames[first : first + kept]


class _Episodes(NamedTuple):
    """Holds m episodes of a block, as they are due. All arrays are int64[m] or narrower."""

    dataset: np.ndarray
    episode: np.ndarray
    epoch: np.ndarray
    kept: np.ndarray
    bytes: np.ndarray


def _runs(sizes: np.ndarray, limit: int) -> Iterator[slice]:
    """Cuts `sizes` into runs whose sum is at most `limit`, or which have one element."""
    start, total = 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _samples(lane: _Lane, position: int) -> Iterator[tuple[int, int]]:
    """Yields (dataset, frame) of the lane's samples from number `position` on, endlessly."""
    for block in lane.blocks(position):
        rest = slice(max(0, position - block.first), None)
        yield from zip(block.dataset[rest].tolist(), block.frame[rest].tolist(), strict=True)


class _Held(NamedTuple):
    """Holds a sample whose record is in the pool, or on its way.

    Attributes:
        dataset: the place of the dataset in the mixture.
        episode: the number of the episode.
        frame: the number of the frame.
        record: the payload of the episode's record.
    """

    dataset: int
    episode: int
    frame: int
    record: Future[bytes]


def _read(lane: _Lane, position: int, readers: Executor) -> Iterator[_Held]:
    """Yields the lane's samples from number `position` on, and reads their records.

    It starts to read the first block at once, and each next block one block ahead.
    """
    blocks, indices = lane.blocks(position), lane.mixture.indices

    def submit() -> tuple[_Block, _Records]:
        block = next(blocks)
        # Each record is read once. Those that are drawn first are read first.
        needed = dict.fromkeys(zip(block.dataset.tolist(), block.episode.tolist(), strict=True))
        return block, {
            (dataset, episode): readers.submit(indices[dataset].read_record, episode)
            for dataset, episode in needed
        }

    def samples(ahead: tuple[_Block, _Records]) -> Iterator[_Held]:
        while True:
            # Here the block before this one is freed. Only then is more read.
            block, records = ahead
            ahead = submit()
            rest = slice(max(0, position - block.first), None)
            columns = (block.dataset, block.episode, block.frame)
            for dataset, episode, frame in zip(
                *(column[rest].tolist() for column in columns), strict=True
            ):
                yield _Held(dataset, episode, frame, records[dataset, episode])

    return samples(submit())


def _draw(mixture: Mixture, held: _Held, choice: int) -> Draw:
    """Waits for the record and copies the sample's images, so that the block can be freed."""
    index, record = mixture.indices[held.dataset], held.record.result()
    start = int(index.episodes["offset"][held.episode])
    images = {}
    for camera in index.row.cameras:
        view = index.view(camera, choice)
        offset, length = index.image_range(held.frame, view)
        images[view] = record[offset - start : offset - start + length]
    return Draw(held.dataset, held.frame, choice, read=lambda frame, view: images[view])
