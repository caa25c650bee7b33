"""From indices to global batches: rows of a step, preprocessing, prefetch."""

import contextlib
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np

from pi0_jax import preprocess
from pi0_jax.data.index import Index
from pi0_jax.data.mixture import Draw, Mixture, Order
from pi0_jax.observation import FrameId, Sample, TrainBatch
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.tokenizer import Tokenizer

_GROUP = 8  # samples that one thread makes at a time


def canvases(indices: Sequence[Index]) -> dict[str, tuple[int, int]]:
    """For each slot that these datasets fill the canvas that holds all its images: one shape, so one compilation for the run."""

    def sizes(slot: str) -> list[tuple[int, int]]:
        robots = [
            (index, index.embodiment.cameras[slot])
            for index in indices
            if slot in index.embodiment.cameras
        ]
        return [
            (height, width)
            for index, camera in robots
            for view in index.row.cameras[camera].views
            for height, width in [index.image_sizes[view]["max"]]
        ]

    return {
        slot: preprocess.canvas_for(sizes(slot))
        for slot in preprocess.used_slots([index.embodiment for index in indices])
    }


class Batcher:
    """Samples -> TrainBatch, for robots in the order of a mixture's datasets."""

    def __init__(
        self,
        robots: Sequence[Robot],
        layout: Layout,
        tokenizer: Tokenizer,
        canvases: Mapping[str, tuple[int, int]],
    ) -> None:
        self.robots = tuple(robots)
        self.layout = layout
        self._tokenizer = tokenizer
        self._canvases = canvases

    def assemble(self, samples: Sequence[Sample], rows: Sequence[int]) -> TrainBatch:
        """`rows` are the samples' numbers in the global batch."""
        robots = [self.robots[sample.dataset] for sample in samples]
        observations = [sample.observation for sample in samples]
        return TrainBatch(
            observation=preprocess.host(
                observations, robots, self.layout, self._tokenizer, self._canvases
            ),
            targets=preprocess.host_actions(samples, robots, self.layout),
            frames=FrameId(
                *np.array([(s.dataset, s.episode, s.step) for s in samples], np.int32).T
            ),
            rows=np.asarray(rows, np.int32),
        )


def train_batches(
    order: Order,
    batcher: Batcher,
    *,
    rows: Sequence[int],
    start: int,
    stop: int,
    threads: int,
    prefetch: int,
) -> Generator[TrainBatch, None, None]:
    """`rows` of the global batches of steps start .. stop - 1, made ahead by `threads` threads.

    Beside the batch handed out, at most `prefetch` batches are ready or in the making. Closing the generator, or its end,
    waits for the threads to stop. Raises what reading raises, at the latest at the batch that it concerns.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
    with contextlib.closing(order.draws(start, stop, rows)) as steps:
        try:
            ahead: deque[Future[TrainBatch]] = deque()
            for draws in steps:
                ahead.append(_submit(pool, order.mixture, batcher, draws, rows))
                if len(ahead) > prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(
    pool: Executor, mixture: Mixture, batcher: Batcher, draws: Sequence[Draw], rows: Sequence[int]
) -> Future[TrainBatch]:
    """Samples are made in groups, by any thread. The batch is queued behind them, so a thread that waits for them never holds them up."""
    groups = [draws[i : i + _GROUP] for i in range(0, len(draws), _GROUP)]
    made = [pool.submit(mixture.samples, group) for group in groups]
    return pool.submit(
        lambda: batcher.assemble([sample for samples in made for sample in samples.result()], rows)
    )


def held_out_samples(indices: Sequence[Index], *, per_dataset: int, horizon: int) -> list[Sample]:
    """Evenly spaced frames of every dataset's validation split, where it has one: always the same ones."""
    samples = []
    for dataset, index in enumerate(indices):
        frames = index.frames("val")
        for frame in frames[
            np.linspace(0, len(frames) - 1, min(per_dataset, len(frames))).astype(int)
        ]:
            frame, observation = index.readable(int(frame))
            actions, valid = index.chunk(frame, horizon)
            episode, step = int(index.episode_of(frame)), int(index.step_of(frame))
            samples.append(Sample(observation, actions, valid, dataset, episode, step))
    return samples
