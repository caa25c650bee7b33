"""A run's data: prepared before the first step, and then made into batches ahead of it.

prepare_data    opens indices, statistics and tokenizer, checks them, and makes them the same
                on every process
train_batches   yields this process's rows of every batch, which threads have read, decoded and
                preprocessed in advance
"""

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from pi0_jax import fields, preprocess, sharding
from pi0_jax.checkpoints import Description
from pi0_jax.data.block_order import LocalOrder
from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.findings import index_findings
from pi0_jax.data.index.workers import default_workers
from pi0_jax.data.mixture import (
    Draw,
    Mixture,
    Order,
    UniformOrder,
    check_frames,
    shares_by_frames,
)
from pi0_jax.data.records.metadata import dataset_directory
from pi0_jax.data.rows import Dataset
from pi0_jax.data.statistics import index_statistics, jumps, remarkable_dimensions
from pi0_jax.errors import InputError
from pi0_jax.observation import FrameId, Sample, TrainBatch
from pi0_jax.policy_config import layout, model_config
from pi0_jax.preprocess import Layout, Robot, check_robot, normalize, used_slots
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train.config import RunConfig, to_json
from pi0_jax.train.distributed import Processes
from pi0_jax.train.state import footprint

_GROUP = 8  # the number of samples that one thread makes at a time


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
        """Makes a batch, as arrays on the host, of samples and their numbers in the global batch."""
        robots = [self.robots[sample.dataset] for sample in samples]
        observations = [sample.observation for sample in samples]
        frames = np.array([(s.dataset, s.episode, s.step) for s in samples], np.int32)
        return TrainBatch(
            observation=preprocess.host(
                observations, robots, self.layout, self._tokenizer, self._canvases
            ),
            targets=preprocess.host_actions(samples, robots, self.layout),
            frames=FrameId(*frames.T),
            rows=np.asarray(rows, np.int32),
        )


class Data(NamedTuple):
    """Holds what a run trains on.

    Attributes:
        order: the order in which frames of the mixture are drawn.
        batcher: makes batches of samples.
        held_out: the samples that validation uses.
        robots: dataset name -> robot: the mixture's datasets, then those that only lend their
            statistics.
        tokenizer: the prompts' tokenizer.
        digests: dataset name -> Index.digest, for every one of `robots`.
    """

    order: Order
    batcher: Batcher
    held_out: list[Sample]
    robots: dict[str, Robot]
    tokenizer: Tokenizer
    digests: dict[str, str]


# ---- before the first step


def prepare_data(run: RunConfig, processes: Processes, stored: Description | None) -> Data:
    """Opens (or builds) the indices and everything that follows from them.

    Args:
        run: the run's config.
        processes: the processes that train together.
        stored: what the checkpoint says from which the run resumes; its statistics are taken. None
            for a new run, which computes them.

    Raises:
        InputError: something is wrong with the data; they differ from `stored`; or something
            differs between processes.
    """
    tokenizer = Tokenizer.open(run.tokenizer)
    vocabulary = model_config(run).gemma.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise InputError(
            f"config.tokenizer {run.tokenizer} has {tokenizer.vocab_size} pieces, variant"
            f" {run.variant} embeds {vocabulary}"
        )
    # A missing dataset is told before the first index is built.
    for name in (*run.datasets, *run.statistics_only):
        dataset_directory(_row(run, name), run.data_dir)
    indices = [_index(run, name, processes) for name in run.datasets]
    everything = [*indices, *(_index(run, name, processes) for name in run.statistics_only)]
    processes.check_same("data", _fingerprints(run, tokenizer, everything))
    if stored is not None:
        _check_same_data(run, tokenizer, everything, stored)
    for index in indices:
        # A dataset with one episode, or whose row holds out none, trains without validation. The
        # summary says so.
        if (index.episodes["split"] == SPLITS.index("val")).any() and run.validation_frames:
            check_frames(index, "val")
    shares = shares_by_frames(indices, run.weights, run.frames_power)
    mixture = Mixture(indices, shares, split="train", horizon=run.horizon, seed=run.seed)
    for index in everything:
        _check_prompts(tokenizer, index, run)
    robots = dict(stored.robots) if stored is not None else _robots(run, everything, processes)
    laid_out = layout(run, used_slots([index.embodiment for index in indices]))
    for robot in robots.values():
        check_robot(robot, laid_out)
    of_mixture = [robots[name] for name in run.datasets]
    return Data(
        order=UniformOrder(mixture, run.batch_size)
        if run.order == "uniform"
        else LocalOrder(
            mixture, run.batch_size, lanes=run.lanes, pool_bytes=run.lane_megabytes << 20
        ),
        batcher=Batcher(of_mixture, laid_out, tokenizer, canvases(indices)),
        held_out=held_out_samples(indices, per_dataset=run.validation_frames, horizon=run.horizon),
        robots=robots,
        tokenizer=tokenizer,
        digests={index.name: index.digest for index in everything},
    )


def _row(run: RunConfig, name: str) -> Dataset:
    return find_row(name, run.own_datasets, keep_empty_language=run.keep_empty_language)


def _index(run: RunConfig, name: str, processes: Processes) -> Index:
    return build_or_open(
        _row(run, name),
        run.data_dir,
        run.index_dir or None,
        progress=processes.first,
        workers=default_workers(),
        skip_bad_episodes=run.skip_bad_episodes,
    )


def canvases(indices: Sequence[Index]) -> dict[str, tuple[int, int]]:
    """Returns for each camera slot that the datasets fill the canvas that holds all its images.

    A slot has one canvas, height and width in pixels, so images have one shape and the step is
    compiled once for the run.
    """

    def sizes(slot: str) -> list[tuple[int, int]]:
        return [
            (height, width)
            for index in indices
            if slot in index.embodiment.cameras
            for view in index.row.cameras[index.embodiment.cameras[slot]].views
            for height, width in [index.image_sizes[view]["max"]]
        ]

    slots = used_slots([index.embodiment for index in indices])
    return {slot: preprocess.canvas_for(sizes(slot)) for slot in slots}


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
        count = min(per_dataset, len(frames))
        for frame in frames[np.linspace(0, len(frames) - 1, count).astype(int)]:
            frame, observation = index.readable(int(frame))
            actions, valid = index.chunk(frame, horizon)
            episode, step = int(index.episode_of(frame)), int(index.step_of(frame))
            samples.append(Sample(observation, actions, valid, dataset, episode, step))
    return samples


def _robots(run: RunConfig, indices: list[Index], processes: Processes) -> dict[str, Robot]:
    """Returns the robots with the statistics of process 0: another CPU might round otherwise."""
    mine = indices if processes.first else []
    computed = {
        index.name: normalize.to_json(index_statistics(index, run.horizon)) for index in mine
    }
    records = json.loads(processes.broadcast("statistics", json.dumps(computed)))
    return {
        index.name: Robot(
            index.embodiment,
            normalize.from_json(records[index.name], "statistics of process 0"),
        )
        for index in indices
    }


def _fingerprints(run: RunConfig, tokenizer: Tokenizer, indices: list[Index]) -> dict[str, str]:
    """Returns what must be the same on all processes: config, indices and tokenizer."""
    own = fields.names(RunConfig, "per_process")
    stated = {
        f"config.{name}": repr(value) for name, value in to_json(run).items() if name not in own
    }
    digests = {f"dataset {index.name}: digest of the index": index.digest for index in indices}
    model = hashlib.sha256(tokenizer.model).hexdigest()[:16]
    return stated | digests | {"config.tokenizer: hash of the model": model}


def _check_same_data(
    run: RunConfig, tokenizer: Tokenizer, indices: list[Index], stored: Description
) -> None:
    """Raises InputError if the data or the tokenizer are not those with which the run began."""
    checkpoint = f"the checkpoint of step {stored.position}"
    if tokenizer.model != stored.tokenizer.model:
        raise InputError(
            f"config.tokenizer {run.tokenizer}: the model differs from that of {checkpoint}"
        )
    for index in indices:
        if index.embodiment != stored.robots[index.name].embodiment:
            raise InputError(
                f"dataset {index.name}: its embodiment differs from that of {checkpoint}"
            )
        if index.digest != stored.digests[index.name]:
            raise InputError(
                f"dataset {index.name}: the digest of its index is {index.digest}, in {checkpoint}"
                f" {stored.digests[index.name]}: files or rule have changed since, or lie elsewhere"
                " (behind a URL a digest is made of the storage's own checksums, so it is not that"
                " of the same files on a disk)"
            )


def _check_prompts(tokenizer: Tokenizer, index: Index, run: RunConfig) -> None:
    """Raises InputError for a prompt over the limit, before the run meets it in a batch."""
    limit, dims = run.max_tokens, len(index.embodiment.state) if run.state_in_prompt else None
    if dims is not None and (alone := tokenizer.most_pieces("", dims)) > limit:
        raise InputError(
            f"dataset {index.name}: its state of {dims} numbers takes up to {alone} tokens of a"
            f" prompt alone; expected at most config.max_tokens, {limit}"
        )
    lengths = {prompt: tokenizer.most_pieces(prompt, dims) for prompt in index.prompts}
    over = [prompt for prompt, length in lengths.items() if length > limit]
    if over and (dims is not None or not run.cut_prompts):
        longest = max(over, key=lengths.__getitem__)
        state, remedy = "", ", or let prompts be cut with config.cut_prompts"
        if dims is not None:
            own = lengths[longest] - len(tokenizer.pieces(longest, ()))
            state, remedy = f", {own} of them the state's", ""
        raise InputError(
            f"dataset {index.name}: {len(over)} of {len(lengths)} prompts have more tokens than"
            f" config.max_tokens, {limit}; the longest has {lengths[longest]}{state}:"
            f" {longest!r}; raise it{remedy}"
        )


def summary(run: RunConfig, data: Data, mesh: Mesh) -> str:
    """Returns lines for people about what is trained, and on what."""
    parts = "" if run.accumulate == 1 else f" in {run.accumulate} parts"
    lines = footprint(run, mesh).lines()
    if model_config(run).adaptive and not run.state_in_prompt:
        lines.insert(0, "the model reads no state: config.state_in_prompt is False")
    mixture = data.order.mixture
    for index, share in zip(mixture.indices, mixture.shares.values(), strict=True):
        training, held_out = len(index.frames("train")), len(index.frames("val"))
        lines.append(
            f"{index.name}: {100 * share:.2f}% of samples, {training:,} training frames,"
            f" {held_out:,} held out"
        )
        lines += jumps(index, run.horizon, data.robots[index.name].statistics)
        if not held_out or not run.validation_frames:
            why = (
                "no frame is held out" if run.validation_frames else "config.validation_frames is 0"
            )
            lines.append(f"{index.name}: {why}: it is trained on without validation")
        lines += [f"{index.name}: {finding.text}" for finding in index_findings(index)]
    for name, robot in data.robots.items():
        steps = robot.embodiment.execute_steps
        if steps > run.horizon:
            lines.append(
                f"{name}: rollouts execute {steps} steps of a chunk, as its robot's record says,"
                f" and refuse config.horizon {run.horizon}"
            )
        lines += remarkable_dimensions(name, robot, run.normalization)
    head = f"batch {run.batch_size}{parts}, {run.draws} draws, variant {run.variant}"
    return "\n  ".join([head, *lines])


# ---- batches


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the rows of the global batch that this process's devices hold, in ascending order."""
    parts = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted(
        {row for part in parts if part is not None for row in range(*part[0].indices(batch_size))}
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
