"""From indices to global batches: rows of a step, preprocessing, prefetch."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from pi0_jax import preprocess
from pi0_jax.data.index import Index
from pi0_jax.data.mixture import Mixture
from pi0_jax.observation import FrameId, Sample, TrainBatch
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.tokenizer import Tokenizer


def canvas(indices: Sequence[Index]) -> tuple[int, int]:
    """The canvas that holds every image of these datasets: one shape, so one compilation for the run."""
    return preprocess.canvas_for([tuple(sizes["max"]) for index in indices for sizes in index.image_sizes.values()])


class Batcher:
    """Samples -> TrainBatch, for robots in the order of a mixture's datasets."""

    def __init__(self, robots: Sequence[Robot], layout: Layout, tokenizer: Tokenizer, canvas: tuple[int, int]) -> None:
        self.robots = tuple(robots)
        self.layout = layout
        self._tokenizer = tokenizer
        self._canvas = canvas

    def assemble(self, samples: Sequence[Sample], rows: Sequence[int]) -> TrainBatch:
        """`rows` are the samples' numbers in the global batch."""
        robots = [self.robots[sample.dataset] for sample in samples]
        observations = [sample.observation for sample in samples]
        return TrainBatch(
            observation=preprocess.host(observations, robots, self.layout, self._tokenizer, self._canvas),
            targets=preprocess.host_actions(samples, robots, self.layout),
            frames=FrameId(*np.array([(s.dataset, s.episode, s.step) for s in samples], np.int32).T),
            rows=np.asarray(rows, np.int32),
        )


def train_batches(
    mixture: Mixture, batcher: Batcher, *, batch_size: int, start: int, stop: int, threads: int, prefetch: int
) -> Iterator[TrainBatch]:
    """The batches of steps start .. stop - 1, prepared ahead by `threads` threads."""
    rows = range(batch_size)

    def batch(step: int) -> TrainBatch:
        return batcher.assemble([mixture.sample(step * batch_size + row) for row in rows], rows)

    steps = grain.MapDataset.range(start, stop).map(batch)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def held_out_samples(indices: Sequence[Index], *, per_dataset: int, horizon: int) -> list[Sample]:
    """Evenly spaced frames of every dataset's validation split: always the same ones."""
    samples = []
    for dataset, index in enumerate(indices):
        frames = index.frames("val")
        for frame in frames[np.linspace(0, len(frames) - 1, min(per_dataset, len(frames))).astype(int)]:
            actions, valid = index.chunk(int(frame), horizon)
            episode, step = int(index.episode_of(frame)), int(index.step_of(frame))
            samples.append(Sample(index.observation(int(frame)), actions, valid, dataset, episode, step))
    return samples
