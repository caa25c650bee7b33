"""The local order: whole records are read, in blocks of episodes, into a bounded pool. For slow disks and remote storage.

    rows of a batch        0 1 | 2 3 | 4 5 | 6 7           a row belongs to a lane, a host owns whole lanes
    lane                    0     1     2     3

    blocks of lane 2       | a7 c2 a1 | b5 a9 a4 c8 | a3 ...      whole episodes: a7 is episode 7 of dataset a
    its samples            | a c a a c a ... | b a ...            the kept frames of a block, shuffled
    its pool               | this block | the next, read ahead |

Everything is a pure function of (seed, step), and no step needs those before it to be computed:

- The episodes of a dataset are dealt to lanes, as decks of equally many frames: to 5%, and the frames of a smaller deck come up
  more often by that much. Where episodes are too few for this there are fewer decks, and neighbouring lanes share one,
  each in an order of its own. A lane goes through its deck again and again, shuffled anew: in each such epoch every record
  is read once and every kept frame drawn once.
- Datasets are interleaved by whole episodes. A lane's clock runs in samples; at time t, w t frames are due of a dataset whose
  share is w, and an episode comes when the flow reaches a fraction of it: one fraction in one lane, another in the next. In a
  lane, a dataset is at most its longest episode from its share (and what the shuffle of a block moves), over all lanes by a few
  episodes, because rare datasets come up in one lane after the other.
- The clock is cut into stretches of a fixed number of samples, each of which is known from its number alone. A stretch is cut
  into blocks of at most half the pool's bytes; an episode that is larger makes a block of its own. Lanes begin their
  stretches at different times.

Memory: two blocks of records a lane, so at most its pool, or twice the largest record where that is more (`bound_bytes`);
beside them the encoded images of the batches in the making, and 24 bytes for each episode of this host's lanes. To resume is to
read the block again in which the step lies.

Mixing: a batch is drawn from one block of every lane. `mixture.mixing` measures it: with 35 datasets of the sizes of the public
ones, 256 rows, 32 lanes and 512 MB a lane, a batch has 183 different episodes of 31 datasets; in uniform order 256 of 35.
"""

import bisect
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pi0_jax.data.decks import Deck, deal
from pi0_jax.data.mixture import PERIOD, Draw, Frames, Mixture, host_rows
from pi0_jax.data.permutation import hashes, key
from pi0_jax.errors import InputError

_BLOCKS_PER_STRETCH = 4  # about: more make the last block of a stretch, which is small, rarer

_Records = dict[tuple[int, int], Future[bytes]]  # (dataset, episode) -> payload


class LocalOrder:
    """An `Order` (mixture.py) that reads whole records, each once for all of its frames."""

    def __init__(self, mixture: Mixture, batch_size: int, *, lanes: int, pool_bytes: int) -> None:
        """`pool_bytes`: encoded bytes that each lane may hold. Raises InputError if `lanes` does not divide the batch."""
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
        """The most bytes of records that a lane holds."""
        return 2 * max(self._block_bytes, *(dealt.largest_record for dealt in self._dealt))

    def rows(self, host: int, hosts: int) -> range:
        if hosts < 1 or self.lanes % hosts:
            raise InputError(
                f"{hosts} hosts: expected a number that divides the {self.lanes} lanes"
            )
        return host_rows(self.batch_size, host, hosts)

    def frames(self, start: int, stop: int, rows: Sequence[int]) -> Iterator[Frames]:
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
        """The lanes that make up `rows`. Raises InputError if these are not whole lanes."""
        lanes = sorted({row // self._rows_per_lane for row in rows})
        if list(rows) != [
            lane * self._rows_per_lane + i for lane in lanes for i in range(self._rows_per_lane)
        ]:
            raise InputError(
                f"rows {list(rows)}: expected whole lanes of {self._rows_per_lane} rows each, ascending"
            )
        return lanes

    def _lane(self, number: int) -> "_Lane":
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
    """n samples of a lane, in order."""

    first: int  # number of the first of them in the lane
    dataset: np.ndarray  # int64[n]
    episode: np.ndarray  # int64[n]
    frame: np.ndarray  # int64[n]


class _Lane(NamedTuple):
    """What a lane draws, without reading it."""

    mixture: Mixture
    decks: list[Deck]  # in the order of the mixture's datasets
    number: int
    stretch: int  # samples, on average
    offset: int  # by so many samples the first stretch is shorter
    block_bytes: int

    def blocks(self, position: int) -> Iterator[_Block]:
        """The block that holds the lane's sample number `position`, and those after it, endlessly."""
        for number in itertools.count(self._stretch_of(position)):
            first = self._samples_before(number)
            for part in self._parts(number):
                count = int(part.kept.sum())
                if first + count > position:
                    yield self._block(first, part)
                first += count

    def _due_before(self, stretch: int) -> list[int]:
        """For each dataset the number of frames that are due before the stretch begins."""
        clock = max(0, stretch * self.stretch - self.offset)
        return [clock * weight // PERIOD for weight in self.mixture.weights.tolist()]

    def _samples_before(self, stretch: int) -> int:
        return sum(
            deck.frames_before(due)
            for deck, due in zip(self.decks, self._due_before(stretch), strict=True)
        )

    def _stretch_of(self, position: int) -> int:
        # _samples_before is within this of the clock
        slack = sum(deck.longest + 1 for deck in self.decks)
        low, high = (
            max(0, (position - slack) // self.stretch),
            (position + slack) // self.stretch + 3,
        )
        return low + bisect.bisect_right(range(low, high), position, key=self._samples_before) - 1

    def _parts(self, stretch: int) -> Iterator["_Episodes"]:
        """The episodes of a stretch as they are due, cut into runs of at most `block_bytes`."""
        times = zip(
            self.decks, self._due_before(stretch), self._due_before(stretch + 1), strict=True
        )
        dues = [deck.due(now, then) for deck, now, then in times]
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
        """Shuffles. A dataset's places are anywhere in the block; among them its frames come epoch by epoch."""
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
        # those of the first dataset, then of the second ...
        places = np.argsort(shuffled, kind="stable")
        order = np.empty(count, np.int64)
        order[places] = np.lexsort((random[count:], epoch, dataset))
        return _Block(first, dataset[order], episode[order], frame[order])

    def _kept_frames(self, dataset: int, episode: int, kept: int) -> np.ndarray:
        index = self.mixture.indices[dataset]
        frames = index.frames(self.mixture.split)
        first = np.searchsorted(frames, index.episodes["start"][episode])
        return frames[first : first + kept]


class _Episodes(NamedTuple):
    """m episodes of a block, as they are due; all int64[m] or narrower."""

    dataset: np.ndarray
    episode: np.ndarray
    epoch: np.ndarray
    kept: np.ndarray
    bytes: np.ndarray


def _runs(sizes: np.ndarray, limit: int) -> Iterator[slice]:
    """Cuts into runs of a sum of at most `limit`, or of one element."""
    start, total = 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _samples(lane: _Lane, position: int) -> Iterator[tuple[int, int]]:
    """(dataset, frame) of the lane's samples from number `position` on, endlessly."""
    for block in lane.blocks(position):
        rest = slice(max(0, position - block.first), None)
        yield from zip(block.dataset[rest].tolist(), block.frame[rest].tolist(), strict=True)


class _Held(NamedTuple):
    """A sample whose record is in the pool, or on its way."""

    dataset: int
    episode: int
    frame: int
    record: Future[bytes]  # the payload of the episode's record


def _read(lane: _Lane, position: int, readers: Executor) -> Iterator[_Held]:
    """The lane's samples from number `position` on. Starts to read the first block at once, and each next one a block ahead."""
    blocks, indices = lane.blocks(position), lane.mixture.indices

    def submit() -> tuple[_Block, _Records]:
        block = next(blocks)
        # each once, the first to be drawn first
        needed = dict.fromkeys(zip(block.dataset.tolist(), block.episode.tolist(), strict=True))
        return block, {
            (dataset, episode): readers.submit(indices[dataset].read_record, episode)
            for dataset, episode in needed
        }

    def samples(ahead: tuple[_Block, _Records]) -> Iterator[_Held]:
        while True:
            block, records = ahead  # the block before this one goes, and only then more is read
            ahead = submit()
            rest = slice(max(0, position - block.first), None)
            columns = (block.dataset, block.episode, block.frame)
            for dataset, episode, frame in zip(
                *(column[rest].tolist() for column in columns), strict=True
            ):
                yield _Held(dataset, episode, frame, records[dataset, episode])

    return samples(submit())


def _draw(mixture: Mixture, held: _Held, choice: int) -> Draw:
    """Waits for the record and copies the sample's images, so that the block is free to go."""
    index, record = mixture.indices[held.dataset], held.record.result()
    start = int(index.episodes["offset"][held.episode])
    images = {}
    for camera in index.row.cameras:
        view = index.view(camera, choice)
        offset, length = index.image_range(held.frame, view)
        images[view] = record[offset - start : offset - start + length]
    return Draw(held.dataset, held.frame, choice, read=lambda frame, view: images[view])
