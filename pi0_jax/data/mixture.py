"""Draws samples from several datasets, in the uniform order.

Which frame comes next is a pure function of (seed, position).

    position     0  1  2  3  4  5 ...      row r of step s has position s * batch + r, whoever asks
    dataset      a  b  a  a  b  a ...      each dataset's share of every stretch of positions
                                           follows its weight
    draw         0  0  1  2  1  3 ...      within a dataset draws count up: epoch = draw // kept
    frame       17  4  2 30  9 11 ...      frames, and each epoch is a new permutation, so that no
                                           frame repeats within it

There is no buffer and no state. A run that is resumed goes on at the next step. Datasets are
interleaved evenly, and not drawn by lot: after any number of positions a dataset's count is within
a few samples of its share. So even a dataset that makes up a hundred-thousandth of the mixture gets
its part. block_order.py has the other order, for slow disks and remote storage.
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pi0_jax.data.index import Index, Reader
from pi0_jax.data.index.findings import why_no_frames
from pi0_jax.data.permutation import hashes, key, permute
from pi0_jax.errors import InputError
from pi0_jax.observation import FrameId, Sample

# Weights are whole numbers that add up to this. The product of two such numbers fits into int64.
PERIOD = 1 << 30
# It is about a hundred of PERIOD, so rounding changes a share by at most 0.5%.
_SMALLEST_SHARE = 1e-7


class Frames(NamedTuple):
    """Says which frames the rows of a batch show."""

    dataset: np.ndarray  # int64[n]: place in the mixture
    frame: np.ndarray  # int64[n]: number in the dataset's index


class Draw(NamedTuple):
    """Holds one row of a batch that is still to be read and decoded.

    Attributes:
        dataset: the place of the dataset in the mixture.
        frame: the number in the dataset's index.
        choice: decides which view and which prompt, where there are several: Index.observation.
        read: gives the encoded images. None means that the index reads them from the files.
    """

    dataset: int
    frame: int
    choice: int
    read: Reader | None = None


class Order(Protocol):
    """Decides which frames make the global batch of a step: a pure function of (seed, step).

    The argument `rows` says which rows of the global batch are returned: all of them, or those of
    one host, ascending.
    """

    mixture: "Mixture"
    batch_size: int

    def rows(self, host: int, hosts: int) -> range:
        """Returns the rows of one of `hosts` hosts.

        Raises:
            InputError: the batch cannot be shared by so many hosts.
        """
        ...

    def frames(self, start: int, stop: int, rows: Sequence[int]) -> Iterator[Frames]:
        """Yields the frames of steps start .. stop - 1. It reads no file of the dataset."""
        ...

    def draws(
        self, start: int, stop: int, rows: Sequence[int]
    ) -> Generator[list[Draw], None, None]:
        """Yields the same rows, to be read. Closing the generator stops what it reads ahead."""
        ...


class Mixture:
    """Holds one split of several datasets with weights. All methods are thread safe.

    Attributes:
        shares: dataset name -> its share of the samples.
        weights: int64[datasets], the shares as whole numbers of the sum PERIOD.
    """

    def __init__(
        self,
        indices: Sequence[Index],
        weights: Mapping[str, float],
        *,
        split: str,
        horizon: int,
        seed: int,
    ) -> None:
        """Checks the datasets and their weights.

        Args:
            indices: one for each dataset.
            weights: dataset name -> a positive number. A dataset's share of the samples is its
                number divided by the sum of all.
            split: "train" or "val".
            horizon: steps of an action chunk.
            seed: decides the order of the frames.

        Raises:
            InputError: there are no datasets; two datasets have one name; a weight has no dataset,
                or a dataset no weight; a weight is not positive; a share is below 1e-7; a dataset
                has no kept frames in `split`.
        """
        _check_weights([index.name for index in indices], weights)
        for index in indices:
            check_frames(index, split)
        self.indices = tuple(indices)
        self.shares = _shares({index.name: weights[index.name] for index in indices})
        self.weights = _whole_weights(self.shares)
        self.split = split
        self.horizon = horizon
        self.seed = seed

    def samples(self, draws: Sequence[Draw]) -> list[Sample]:
        """Reads and decodes the images of `draws`.

        Raises:
            InputError: as for Index.readable.
        """
        samples: dict[int, Sample] = {}
        for dataset in {draw.dataset for draw in draws}:
            index = self.indices[dataset]
            rows = [i for i, draw in enumerate(draws) if draw.dataset == dataset]
            frames = np.array([draws[i].frame for i in rows], np.int64)
            episodes, steps = index.episode_of(frames).tolist(), index.step_of(frames).tolist()
            for i, actions, valid, episode, step in zip(
                rows, *index.chunks(frames, self.horizon), episodes, steps, strict=True
            ):
                frame, observation = index.readable(
                    draws[i].frame, draws[i].choice, read=draws[i].read
                )
                # Another episode's frame was read in place of one that does not decode.
                if frame != draws[i].frame:
                    actions, valid = index.chunk(frame, self.horizon)
                    episode, step = int(index.episode_of(frame)), int(index.step_of(frame))
                samples[i] = Sample(observation, actions, valid, dataset, episode, step)
        return [samples[i] for i in range(len(draws))]

    def choices(self, positions: np.ndarray) -> np.ndarray:
        """Returns the `choice` of the sample at int64[n] positions: int64[n] in [0, 2^63)."""
        return (hashes(key(self.seed, "choice"), positions) >> np.uint64(1)).astype(np.int64)

    def frame_ids(self, frames: Frames) -> FrameId:
        """Returns dataset, episode and step of each frame, int32[n] each."""
        episode, step = np.zeros_like(frames.frame), np.zeros_like(frames.frame)
        for number in np.unique(frames.dataset):
            rows = frames.dataset == number
            index, own = self.indices[number], frames.frame[rows]
            episode[rows], step[rows] = index.episode_of(own), index.step_of(own)
        return FrameId(*(ids.astype(np.int32) for ids in (frames.dataset, episode, step)))


def shares_by_frames(
    indices: Sequence[Index], weights: Sequence[float], power: float
) -> dict[str, float]:
    """Returns each dataset's share, in proportion to weight x n^power for n training frames.

    Args:
        indices: one for each dataset.
        weights: one for each dataset, in the same order.
        power: 0 to leave the number of frames out, 1 to weigh all frames alike.

    Raises:
        InputError: a dataset has no training frames, a weight is not positive, or the power is too
            large for float64.
    """
    names = [index.name for index in indices]
    _check_weights(names, dict(zip(names, weights, strict=True)))
    for index in indices:
        check_frames(index, "train")
    try:
        amounts = {
            index.name: weight * len(index.frames("train")) ** power
            for index, weight in zip(indices, weights, strict=True)
        }
        finite = math.isfinite(math.fsum(amounts.values()))
    except OverflowError:
        finite = False
    if not finite:
        raise InputError(
            f"mixture: weight x frames^{power:g}: expected numbers that float64 can add up, found larger ones"
        )
    return _shares(amounts)


class UniformOrder:
    """Is an `Order` in which every frame of a dataset is as likely to come next as any other.

    It is for disks that read at random. Each host reads only the images of its rows.
    """

    def __init__(self, mixture: Mixture, batch_size: int) -> None:
        self.mixture = mixture
        self.batch_size = batch_size
        self._tree = _tree(mixture.weights)
        self._frames = [index.frames(mixture.split) for index in mixture.indices]
        self._sizes = np.array([len(frames) for frames in self._frames])  # int64[datasets]
        # The key takes the dataset's name, so that the order within a dataset does not depend on
        # what else is in the mixture.
        self._keys = np.array(
            [key(mixture.seed, "frames", index.name) for index in mixture.indices], np.uint64
        )

    def rows(self, host: int, hosts: int) -> range:
        """Returns the rows of one of `hosts` hosts. See `Order.rows`."""
        return host_rows(self.batch_size, host, hosts)

    def frames(self, start: int, stop: int, rows: Sequence[int]) -> Iterator[Frames]:
        """Yields the frames of steps start .. stop - 1. See `Order.frames`."""
        for step in range(start, stop):
            yield self._at(step * self.batch_size + np.asarray(rows, np.int64))

    def draws(
        self, start: int, stop: int, rows: Sequence[int]
    ) -> Generator[list[Draw], None, None]:
        """Yields the same rows, to be read. See `Order.draws`."""
        for step in range(start, stop):
            positions = step * self.batch_size + np.asarray(rows, np.int64)
            columns = (*self._at(positions), self.mixture.choices(positions))
            yield [Draw(*row) for row in np.stack(columns, axis=1).tolist()]

    def _at(self, positions: np.ndarray) -> Frames:
        """Returns the frames at int64[n] positions."""
        dataset, draw = _interleave(self._tree, positions)
        sizes = self._sizes[dataset]
        epoch, place = np.divmod(draw, sizes)
        place = permute(place, sizes, hashes(self._keys[dataset], epoch))
        frame = np.empty_like(place)
        for number in np.unique(dataset):
            own = dataset == number
            frame[own] = self._frames[number][place[own]]
        return Frames(dataset, frame)


class Mixing(NamedTuple):
    """Says how well an order mixes, over some steps.

    Attributes:
        episodes: the mean number of distinct episodes in a batch.
        datasets: the mean number of distinct datasets in a batch.
        share_error: the largest relative deviation of a dataset's part in all samples from its
            share.
    """

    episodes: float
    datasets: float
    share_error: float


def mixing(order: Order, start: int, stop: int) -> Mixing:
    """Measures how the global batches of steps start .. stop - 1 mix. It reads no files."""
    mixture = order.mixture
    counts = np.zeros(len(mixture.indices), np.int64)
    episodes = datasets = 0
    for frames in order.frames(start, stop, range(order.batch_size)):
        ids = mixture.frame_ids(frames)
        episodes += len(np.unique(np.stack([ids.dataset, ids.episode]), axis=1).T)
        datasets += len(np.unique(ids.dataset))
        counts += np.bincount(frames.dataset, minlength=len(counts))
    error = np.abs(counts / counts.sum() / np.array(list(mixture.shares.values())) - 1).max()
    return Mixing(episodes / (stop - start), datasets / (stop - start), float(error))


def host_rows(batch_size: int, host: int, hosts: int) -> range:
    """Returns the consecutive rows of the global batch that one of `hosts` hosts has.

    Raises:
        InputError: `host` is not below `hosts`, or `hosts` does not divide the batch.
    """
    if not 0 <= host < hosts or batch_size % hosts:
        raise InputError(
            f"host {host} of {hosts}: expected a host below a number of hosts that divides the batch of {batch_size} rows"
        )
    count = batch_size // hosts
    return range(host * count, (host + 1) * count)


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}


def check_frames(index: Index, split: str) -> None:
    """Raises InputError, which says why, if no frame of a split may be drawn."""
    if not len(index.frames(split)):
        raise InputError(
            f"dataset {index.name}: expected frames to draw in split {split}, found none: {why_no_frames(index, split)}"
        )


def _check_weights(names: Sequence[str], weights: Mapping[str, float]) -> None:
    if not names:
        raise InputError("mixture: expected at least one dataset, found none")
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"mixture: expected datasets of different names, found {name} {names.count(name)} times"
            )
        if name not in weights:
            raise InputError(
                f"mixture: expected a weight for dataset {name}, found weights for {', '.join(weights) or 'none'}"
            )
    for name, weight in weights.items():
        if name not in names:
            raise InputError(
                f"mixture: weight of {name}: expected one of the datasets {', '.join(names)}"
            )
        if not (weight > 0 and math.isfinite(weight)):
            raise InputError(
                f"mixture: weight of {name}: expected a positive number, found {weight}"
            )


def _whole_weights(shares: Mapping[str, float]) -> np.ndarray:
    """Returns int64[datasets] > 0 with the sum PERIOD."""
    for name, share in shares.items():
        if share < _SMALLEST_SHARE:
            raise InputError(
                f"mixture: weight of {name}: expected a share of the samples of at least {_SMALLEST_SHARE}, found {share}"
            )
    weights = np.array([round(share * PERIOD) for share in shares.values()])
    # What is left from rounding goes to the largest, which it changes least.
    weights[weights.argmax()] += PERIOD - weights.sum()
    return weights


def _tree(weights: np.ndarray) -> np.ndarray:
    """Returns int64[2 * leaves]: a binary tree of sums, whose leaves are the weights and zeros.

    Node v is above the nodes 2 v and 2 v + 1, and is their sum. Node 1 is the root.

        weights 5 2 1        node    1    2 3    4 5 6 7
                             tree    8    7 1    5 2 1 0
    """
    leaves = 1 << (len(weights) - 1).bit_length()
    tree = np.zeros(2 * leaves, np.int64)
    tree[leaves : leaves + len(weights)] = weights
    for node in range(leaves - 1, 0, -1):
        tree[node] = tree[2 * node] + tree[2 * node + 1]
    return tree


def _interleave(tree: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the dataset at each position, and how many earlier positions have the same dataset.

    At a node with weights a and b below, floor(p a / (a + b)) of the first p positions go left, and
    the others go right.

    Both are int64[n].
    """
    leaves = len(tree) // 2
    rounds, place = np.divmod(positions, PERIOD)
    node = np.ones_like(place)
    # All positions go down from the root, one level in each round. `place` is the number of earlier
    # positions (of this period) that came to the same node.
    for _ in range(leaves.bit_length() - 1):
        total, left = tree[node], tree[2 * node]
        # How many of the positions before `place` went left.
        before = place * left // total
        goes_left = (place + 1) * left // total > before
        place = np.where(goes_left, before, place - before)
        # For a bool array ~ is "not", and counts 0 for left and 1 for right.
        node = 2 * node + ~goes_left
    return node - leaves, rounds * tree[node] + place
