"""Draws frames in the local order, for slow disks and remote storage.

Whole records are read, in blocks of episodes, into a bounded pool.

    rows of a batch        0 1 | 2 3 | 4 5 | 6 7           a row belongs to a lane, a host owns
    lane                    0     1     2     3            whole lanes

    blocks of lane 2       | a7 c2 a1 | b5 a9 a4 c8 | a3 ...      whole episodes: a7 is episode 7
                                                                  of dataset a
    its samples            | a c a a c a ... | b a ...            the kept frames of a block,
                                                                  shuffled
    its pool               | this block | the next, read ahead |

    episodes of c in it    | c7  | c2 | c5    | c5    | c7  | c2 | ...      shuffled in each epoch
    their kept frames      0     6    10      18      26    32   36         end to end
    each is due at           x     x     x      x       x     x             a third of its frames

Everything is a pure function of (seed, step). To compute a step, no earlier step is needed:

- The episodes of a dataset are dealt to lanes, in groups of equally many frames. The groups are
  equal to 5%, and the frames of a smaller group come up more often by that much. If the episodes
  are too few for this, there are fewer groups, and neighbouring lanes share one, each in an order
  of its own. A lane goes through its group again and again, shuffled anew. In each such epoch every
  record is read once, and every kept frame is drawn once.
- Datasets are interleaved by whole episodes. A lane's clock runs in samples. At time t, w t frames
  are due of a dataset whose share is w. An episode is due when this even flow reaches a fixed
  fraction of it: one fraction in one lane, another in the next. In a lane, a dataset is at most its
  longest episode away from its share (and what the shuffle of a block moves). Over all lanes it is
  a few episodes away, because rare datasets come up in one lane after the other.
- The clock is cut into stretches of a fixed number of samples, each of which is known from its
  number alone. A stretch is cut into blocks of at most half the pool's bytes. An episode that is
  larger makes a block of its own. Lanes begin their stretches at different times.

Memory: a lane holds two blocks of records, so at most its pool, or twice the largest record where
that is more (`bound_bytes`). Beside them there are the encoded images of the batches in the making,
and 24 bytes for each episode of this host's lanes. A run that is resumed reads again the records
that are left of the block in which the step lies.

Mixing: a batch is drawn from one block of every lane. `mixture.mixing` measures it. With 35
datasets of the sizes of the public ones, 256 rows, 32 lanes and 512 MB a lane, a batch has 183
different episodes of 31 datasets. In uniform order it has 256 episodes of 35 datasets.
"""

import bisect
import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.read import Index
from pi0_jax.data.mixture import PERIOD, Draw, Frames, Mixture, host_rows
from pi0_jax.data.permutation import hashes, key, permute
from pi0_jax.errors import InputError

# The last block of a stretch is small. The more blocks a stretch has, the rarer such a block is.
# The number is approximate.
_BLOCKS_PER_STRETCH = 4
_MOST_UNEVEN = 1.05  # the largest group's frames over the smallest's
_ONE = 1 << 32


class LocalOrder:
    """Is an `Order` (mixture.py) that reads whole records, each once for all of its frames."""

    def __init__(self, mixture: Mixture, batch_size: int, *, lanes: int, pool_bytes: int) -> None:
        """Deals the mixture's episodes to lanes, each of which holds at most `pool_bytes`.

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
        self._groups = [_deal(index, mixture, lanes) for index in mixture.indices]
        mean = sum(
            share * groups.bytes_per_frame
            for share, groups in zip(mixture.shares.values(), self._groups, strict=True)
        )
        self._stretch = max(1, int(_BLOCKS_PER_STRETCH * self._block_bytes / mean))  # samples

    @property
    def bound_bytes(self) -> int:
        """Returns how many bytes of records a lane holds at most."""
        return 2 * max(self._block_bytes, *(groups.largest_record for groups in self._groups))

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
            itertools.chain.from_iterable(block[[0, 2]].T.tolist() for block in blocks)
            for blocks in self._blocks(start, rows)
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
        every = self._blocks(start, rows)
        readers = ThreadPoolExecutor(len(every), thread_name_prefix="lane")
        try:
            lanes = [_read(blocks, self.mixture.indices, readers) for blocks in every]
            for step in range(start, stop):
                positions = step * self.batch_size + np.asarray(rows, np.int64)
                yield [
                    _draw(self.mixture.indices, next(lanes[i // self._rows_per_lane]), choice)
                    for i, choice in enumerate(self.mixture.choices(positions).tolist())
                ]
        finally:
            readers.shutdown(cancel_futures=True)

    def _blocks(self, step: int, rows: Sequence[int]) -> list[Iterator[np.ndarray]]:
        """Returns for each lane that makes up `rows` its blocks from `step` on: `_Lane.blocks`.

        Raises:
            InputError: the rows are not whole lanes.
        """
        count = self._rows_per_lane
        lanes = sorted({row // count for row in rows})
        if list(rows) != [lane * count + i for lane in lanes for i in range(count)]:
            raise InputError(
                f"rows {list(rows)}: expected whole lanes of {count} rows each, ascending"
            )
        return [self._lane(lane).blocks(step * count) for lane in lanes]

    def _lane(self, number: int) -> "_Lane":
        groups = zip(self.mixture.indices, self._groups, strict=True)
        streams = [_Stream(*pair, self.mixture.seed, number, self.lanes) for pair in groups]
        offset = number * self._stretch // self.lanes
        return _Lane(self.mixture, streams, number, self._stretch, offset, self._block_bytes)


class _Groups(NamedTuple):
    """Holds one dataset's episodes with kept frames, in even groups."""

    episodes: np.ndarray  # int32[E], group after group
    ends: np.ndarray  # int64[groups], where each group ends
    longest: int  # the largest number of kept frames of an episode
    largest_record: int  # bytes
    bytes_per_frame: float  # of all records, over all kept frames


def _deal(index: Index, mixture: Mixture, lanes: int) -> _Groups:
    """Deals a dataset's episodes into as many even groups as divide the lanes.

    They are dealt from the longest to the shortest, to and fro.
    """
    split = index.episodes["split"] == SPLITS.index(mixture.split)
    episodes = np.flatnonzero(split & (index.episodes["kept"] > 0))
    kept, sizes = index.episodes["kept"][episodes], index.episodes["bytes"][episodes]
    # Episodes of the same length are dealt in random order.
    order = np.lexsort((hashes(key(mixture.seed, "deal", index.name), episodes), -kept))
    for groups in (count for count in range(lanes, 0, -1) if lanes % count == 0):
        turn = np.arange(len(order)) % (2 * groups)
        # To and fro, for three groups: 0 1 2 2 1 0 0 1 2 ...
        group = np.minimum(turn, 2 * groups - 1 - turn)
        frames = np.bincount(group, kept[order], groups)
        if frames.max() <= _MOST_UNEVEN * frames.min():
            break
    return _Groups(
        episodes[order][np.argsort(group, kind="stable")].astype(np.int32),
        np.cumsum(np.bincount(group, minlength=groups)),
        int(kept.max()),
        int(sizes.max()),
        float(sizes.sum() / kept.sum()),
    )


class _Stream:
    """Holds one dataset's episodes in one lane: an endless row of frames, cut into episodes."""

    def __init__(self, index: Index, groups: _Groups, seed: int, lane: int, lanes: int) -> None:
        number = lane * len(groups.ends) // lanes
        self.longest = groups.longest
        # int32[e]
        self._episodes = groups.episodes[
            groups.ends[number - 1] if number else 0 : groups.ends[number]
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

    def due(self, now: int, then: int) -> np.ndarray:
        """Returns the episodes that are due in [now, then), counted in frames of the dataset.

        Returns:
            int64[3, m]: episode, epoch, and when it is due.
        """
        (first_epoch, first), (last_epoch, last) = self._place(now), self._place(then)
        parts = []
        for epoch in range(first_epoch, last_epoch + 1):
            order, starts = self._epoch(epoch)
            chosen = slice(first * (epoch == first_epoch), last if epoch == last_epoch else None)
            episodes = order[chosen]
            into = self._kept[episodes].astype(np.int64) * self._fraction >> 32
            when = epoch * self._frames + starts[:-1][chosen] + into
            parts.append(np.stack([episodes, np.full(len(episodes), epoch), when]))
        return np.concatenate(parts, axis=1)

    def frames_before(self, now: int) -> int:
        """Returns the frames of the episodes that are due before `now`: `now` within `longest`."""
        epoch, place = self._place(now)
        return epoch * self._frames + int(self._epoch(epoch)[1][place])

    def _place(self, now: int) -> tuple[int, int]:
        """Returns the epoch of frame `now`, and how many of its episodes are due earlier."""
        epoch, rest = divmod(now, self._frames)
        starts = self._epoch(epoch)[1]
        place = int(np.searchsorted(starts, rest, side="right")) - 1
        start, end = starts[place : place + 2].tolist()
        # The episode in which `now` lies counts too if its fraction is reached.
        return epoch, place + (start + ((end - start) * self._fraction >> 32) < rest)

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an epoch's episodes, int32[e], and the frames before each and in all, int64[e + 1]."""
        random = hashes(key(self._key, epoch), self._episodes)
        order = self._episodes[np.argsort(random, kind="stable")]
        return order, np.concatenate([[0], np.cumsum(self._kept[order], dtype=np.int64)])


class _Lane(NamedTuple):
    """Decides what a lane draws, without reading it."""

    mixture: Mixture
    streams: list[_Stream]  # one for each dataset
    number: int
    stretch: int  # samples of a stretch, on average
    offset: int  # by so many samples the first stretch is shorter
    block_bytes: int  # the largest size of a block

    def blocks(self, position: int) -> Iterator[np.ndarray]:
        """Yields the lane's samples from number `position` on, block by block, without an end.

        Yields:
            int64[3, n]: dataset, episode and frame of each sample.
        """
        for number in itertools.count(self._stretch_of(position)):
            first = self._samples_before(number)
            for episodes in self._episodes(number):
                count = int(episodes[3].sum())
                if first + count > position:
                    yield self._block(first, episodes)[:, max(0, position - first) :]
                first += count

    def _due_before(self, stretch: int) -> list[int]:
        """Returns for each dataset how many frames are due before the stretch begins."""
        clock = max(0, stretch * self.stretch - self.offset)
        return [clock * weight // PERIOD for weight in self.mixture.weights.tolist()]

    def _samples_before(self, stretch: int) -> int:
        """Returns how many samples the lane draws before the stretch begins."""
        due = self._due_before(stretch)
        return sum(map(_Stream.frames_before, self.streams, due))

    def _stretch_of(self, position: int) -> int:
        """Returns the stretch in which the sample number `position` lies."""
        # _samples_before differs from the clock by at most this, so only a few stretches near the
        # clock's are searched.
        slack = sum(stream.longest + 1 for stream in self.streams)
        low = max(0, (position - slack) // self.stretch)
        near = range(low, (position + slack) // self.stretch + 3)
        return low + bisect.bisect_right(near, position, key=self._samples_before) - 1

    def _episodes(self, stretch: int) -> Iterator[np.ndarray]:
        """Yields the episodes of a stretch as they are due, in runs of at most `block_bytes`.

        Yields:
            int64[5, m]: dataset, episode, epoch, kept frames and bytes of each episode.
        """
        clock, tables = [], []
        spans = zip(self._due_before(stretch), self._due_before(stretch + 1), strict=True)
        for number, (now, then) in enumerate(spans):
            episode, epoch, when = self.streams[number].due(now, then)
            # Frames of a dataset over its weight are the lane's clock, in which all compare.
            clock.append(when / self.mixture.weights[number])
            columns = self.mixture.indices[number].episodes
            kept, sizes = columns["kept"][episode], columns["bytes"][episode]
            tables.append(np.stack([np.full(len(episode), number), episode, epoch, kept, sizes]))
        order = np.argsort(np.concatenate(clock), kind="stable")
        table = np.concatenate(tables, axis=1)[:, order]
        for run in _runs(table[4].tolist(), self.block_bytes):
            yield table[:, run]

    def _block(self, first: int, episodes: np.ndarray) -> np.ndarray:
        """Shuffles the kept frames of a block's episodes; its first sample has the number `first`.

        The places of a dataset are anywhere in the block. Among them its frames come epoch by
        epoch.
        """
        dataset, episode, epoch = np.repeat(episodes[:3], episodes[3], axis=1)
        frame = np.concatenate([self._kept_frames(*row) for row in episodes[[0, 1, 3]].T.tolist()])
        count = len(frame)
        random = hashes(key(self.mixture.seed, "block", self.number, first), np.arange(2 * count))
        shuffled = dataset[np.argsort(random[:count], kind="stable")]
        # The places of the first dataset come first, then those of the second, and so on. The
        # frames are sorted the same way below, and within a dataset by epoch and then at random.
        places = np.argsort(shuffled, kind="stable")
        order = np.empty(count, np.int64)
        order[places] = np.lexsort((random[count:], epoch, dataset))
        return np.stack([dataset, episode, frame])[:, order]

    def _kept_frames(self, dataset: int, episode: int, kept: int) -> np.ndarray:
        index = self.mixture.indices[dataset]
        frames = index.frames(self.mixture.split)
        first = np.searchsorted(frames, index.episodes["start"][episode])
        return frames[first : first + kept]


def _runs(sizes: list[int], limit: int) -> Iterator[slice]:
    """Cuts `sizes` into runs whose sum is at most `limit`, or which have one element."""
    start, total = 0, 0
    for i, size in enumerate([*sizes, limit + 1]):  # what fits into no run ends the last one
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size


_Records = dict[tuple[int, int], Future[bytes]]  # (dataset, episode) -> payload
_Held = tuple[int, int, int, Future[bytes]]  # dataset, episode, frame, payload


def _read(
    blocks: Iterator[np.ndarray], indices: Sequence[Index], readers: Executor
) -> Iterator[_Held]:
    """Yields a lane's samples and reads their records.

    It starts to read the first block at once, and each next block one block ahead.
    """

    def submit() -> tuple[np.ndarray, _Records]:
        block = next(blocks)
        # Each record is read once. Those that are drawn first are read first.
        needed = dict.fromkeys(zip(*block[:2].tolist(), strict=True))
        return block, {
            place: readers.submit(indices[place[0]].read_record, place[1]) for place in needed
        }

    def samples(ahead: tuple[np.ndarray, _Records]) -> Iterator[_Held]:
        while True:
            # Here the block before this one is freed. Only then is more read.
            block, records = ahead
            ahead = submit()
            for dataset, episode, frame in block.T.tolist():
                yield dataset, episode, frame, records[dataset, episode]

    return samples(submit())


def _draw(indices: Sequence[Index], held: _Held, choice: int) -> Draw:
    """Waits for the record and copies the sample's images, so that the block can be freed."""
    dataset, episode, frame, record = held
    index, payload = indices[dataset], record.result()
    start = int(index.episodes["offset"][episode])
    images = {}
    for camera in index.row.cameras:
        view = index.view(camera, choice)
        offset, length = index.image_range(frame, view)
        images[view] = payload[offset - start : offset - start + length]
    return Draw(dataset, frame, choice, read=lambda frame, view: images[view])
