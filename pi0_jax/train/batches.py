"""Global batches are made here from indices: the rows of a step, preprocessing and prefetch."""

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
from pi0_jax.preprocess.tokenizer import Tokenizer

_GROUP = 8  # the number of samples that one thread makes at a time


def canvases(indices: Sequence[Index]) -> dict[str, tuple[int, int]]:
    """Returns for each camera slot the canvas that holds all images of these datasets.

    A slot has one canvas, so images have one shape and the step is compiled once for the run.

    Args:
        indices: the indices of the datasets.

    Returns:
        Slot -> (height, width) in pixels, for the slots that the datasets fill.
    """

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
    """Makes a TrainBatch of samples.

    Attributes:
        robots: the robots, in the order of a mixture's datasets.
        layout: which camera slots there are, and how images, prompts and states are laid out.
    """

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
        """Makes a batch of samples.

        Args:
            samples: the samples, one for each row.
            rows: the samples' numbers in the global batch.

        Returns:
            The batch, as arrays on the host.
        """
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
    """Yields the rows of this process, batch by batch, for the steps start .. stop - 1.

    Threads make the batches in advance. Beside the batch handed out, at most `prefetch` batches are
    ready or in the making. When the generator ends or is closed, it waits for the threads to stop.
    An error of reading is raised at the latest at the batch that it concerns.

    Args:
        order: says which frames the rows of a step hold.
        batcher: makes the batches.
        rows: the rows of the global batch that this process makes.
        start: the first step.
        stop: the step after the last one.
        threads: the number of threads.
        prefetch: the number of batches.

    Yields:
        The batches, with len(rows) rows each.
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
    """Queues the work for one batch and returns the batch's future.

    The samples are made in groups, by any thread. The batch is queued behind its samples. So a
    thread that waits for samples never keeps them from being made.
    """
    groups = [draws[i : i + _GROUP] for i in range(0, len(draws), _GROUP)]
    made = [pool.submit(mixture.samples, group) for group in groups]
    return pool.submit(
        lambda: batcher.assemble([sample for samples in made for sample in samples.result()], rows)
    )


def held_out_samples(indices: Sequence[Index], *, per_dataset: int, horizon: int) -> list[Sample]:
    """Returns evenly spaced frames of each dataset's validation split, always the same ones.

    Args:
        indices: the indices of the datasets. A dataset without a validation split gives no samples.
        per_dataset: the number of frames of each dataset; fewer where its split is smaller.
        horizon: H, the number of steps of an action chunk.
    """
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
