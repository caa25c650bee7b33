"""Which frame comes next: a pure function of (seed, position), over any number of datasets.

    position     0  1  2  3  4  5 ...            row r of step s has position s * batch + r, whoever asks
    dataset      a  b  a  a  b  a ...            each dataset's share of every stretch of positions follows its weight
    draw         0  0  1  2  1  3 ...            within a dataset draws count up: epoch = draw // kept frames,
    frame       17  4  2 30  9 11 ...            and each epoch is a new permutation, so that no frame repeats within it

There is no buffer and no state: to resume is to go on at the next position. Grain gives the permutations and the
interleaving.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from pi0_jax.data.index import Index
from pi0_jax.errors import InputError
from pi0_jax.observation import FrameId, Sample


class _KeptFrames:
    """A Grain source: the kept frames of one dataset, as (place in the mixture, frame)."""

    def __init__(self, dataset: int, frames: np.ndarray) -> None:
        self._dataset = dataset
        self._frames = frames  # int64[kept], mapped

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, i: int) -> tuple[int, int]:
        return self._dataset, int(self._frames[i])

    def __repr__(self) -> str:
        return f"_KeptFrames(dataset={self._dataset}, frames={len(self)})"


class Mixture:
    """Samples of one split of several datasets, by position. All methods are thread safe."""

    def __init__(self, indices: Sequence[Index], weights: Mapping[str, float], *, split: str, horizon: int, seed: int) -> None:
        """`weights`: dataset name -> share of the samples, up to a common factor. Grain keeps a share to 1% of itself.

        Raises InputError: no datasets, two of one name, a weight for no dataset or none for one, a weight not
        positive, a dataset without kept frames in `split`.
        """
        _check_weights([index.name for index in indices], weights)
        for index in indices:
            if len(index.frames(split)) == 0:
                found = f"none in {len(index.episodes['start'])} episodes"
                raise InputError(f"dataset {index.name}: expected frames to draw in split {split}, found {found}")
        total = math.fsum(weights.values())
        self.indices = tuple(indices)
        self.shares = {index.name: weights[index.name] / total for index in indices}
        self.horizon = horizon
        self._order = _order(self.indices, self.shares, split, seed)

    def sample(self, position: int) -> Sample:
        """The sample at `position` >= 0: reads and decodes its images. Raises InputError as Index.observation does."""
        dataset, frame = self._order[position]
        index = self.indices[dataset]
        episode = int(index.episode_of(np.int64(frame)))
        actions, valid = index.chunk(frame, self.horizon)
        step = frame - int(index.episodes["start"][episode])
        return Sample(index.observation(frame), actions, valid, dataset=dataset, episode=episode, step=step)

    def frame_ids(self, positions: np.ndarray) -> FrameId:
        """Dataset, episode and step, each int32 of the shape of int64[n] `positions`, without reading an image."""
        drawn = np.array([self._order[int(position)] for position in positions], np.int64).reshape(-1, 2)
        dataset, frame = drawn[:, 0], drawn[:, 1]
        episode, step = np.zeros_like(frame), np.zeros_like(frame)
        for number in np.unique(dataset):
            rows = dataset == number
            index = self.indices[number]
            episode[rows], step[rows] = index.episode_of(frame[rows]), index.step_of(frame[rows])
        return FrameId(dataset.astype(np.int32), episode.astype(np.int32), step.astype(np.int32))


def _check_weights(names: Sequence[str], weights: Mapping[str, float]) -> None:
    if not names:
        raise InputError("mixture: expected at least one dataset, found none")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"mixture: expected datasets of different names, found {name} {names.count(name)} times")
        if name not in weights:
            raise InputError(f"mixture: expected a weight for dataset {name}, found weights for {', '.join(weights) or 'none'}")
    for name, weight in weights.items():
        if name not in names:
            raise InputError(f"mixture: weight of {name}: expected one of the datasets {', '.join(names)}")
        if not (weight > 0 and math.isfinite(weight)):
            raise InputError(f"mixture: weight of {name}: expected a positive number, found {weight}")


def _order(indices: Sequence[Index], shares: Mapping[str, float], split: str, seed: int) -> grain.MapDataset:
    """position -> (dataset, frame)."""
    datasets = [
        grain.MapDataset.source(_KeptFrames(number, index.frames(split))).shuffle(seed=_dataset_seed(seed, index.name)).repeat()
        for number, index in enumerate(indices)
    ]
    smallest = min(shares.values())  # Grain makes whole numbers of weights, 100 for the smallest: 1.0 keeps that one exact
    return grain.MapDataset.mix(datasets, [shares[index.name] / smallest for index in indices])


def _dataset_seed(seed: int, name: str) -> int:
    """uint32: different for each dataset, and the same whatever else is in the mixture."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest(), "big")
