"""A run's data are prepared before the first step.

Indices, statistics and tokenizer are opened, checked, and made the same on every process.
"""

import hashlib
import json
from typing import NamedTuple

from jax.sharding import Mesh

from pi0_jax import fields
from pi0_jax.checkpoints import Description
from pi0_jax.data.block_order import LocalOrder
from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.index.columns import SPLITS
from pi0_jax.data.index.findings import index_findings
from pi0_jax.data.index.workers import default_workers
from pi0_jax.data.mixture import (
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
from pi0_jax.observation import Sample
from pi0_jax.policy_config import layout, model_config
from pi0_jax.preprocess import Robot, check_robot, normalize, used_slots
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train import batches
from pi0_jax.train.config import RunConfig, to_json
from pi0_jax.train.distributed import Processes
from pi0_jax.train.footprint import described, footprint


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
    batcher: batches.Batcher
    held_out: list[Sample]
    robots: dict[str, Robot]
    tokenizer: Tokenizer
    digests: dict[str, str]


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
    tokenizer = _tokenizer(run)
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
    slots = used_slots([index.embodiment for index in indices])
    for robot in robots.values():
        check_robot(robot, layout(run, slots))
    batcher = batches.Batcher(
        [robots[name] for name in run.datasets],
        layout(run, slots),
        tokenizer,
        batches.canvases(indices),
    )
    held_out = batches.held_out_samples(
        indices, per_dataset=run.validation_frames, horizon=run.horizon
    )
    return Data(
        _order(run, mixture),
        batcher,
        held_out,
        robots,
        tokenizer,
        {index.name: index.digest for index in everything},
    )


def _order(run: RunConfig, mixture: Mixture) -> Order:
    """Returns the order of frames that the config names."""
    if run.order == "uniform":
        return UniformOrder(mixture, run.batch_size)
    return LocalOrder(mixture, run.batch_size, lanes=run.lanes, pool_bytes=run.lane_megabytes << 20)


def summary(run: RunConfig, data: Data, mesh: Mesh) -> str:
    """Returns lines for people about what is trained, and on what."""
    parts = "" if run.accumulate == 1 else f" in {run.accumulate} parts"
    lines = [f"batch {run.batch_size}{parts}, {run.draws} draws, variant {run.variant}"]
    lines += [f"  {line}" for line in described(footprint(run, mesh))]
    mixture = data.order.mixture
    for index, share in zip(mixture.indices, mixture.shares.values(), strict=True):
        training, held_out = len(index.frames("train")), len(index.frames("val"))
        lines.append(
            f"  {index.name}: {100 * share:.2f}% of samples, {training:,} training frames, {held_out:,} held out"
        )
        statistics = data.robots[index.name].statistics
        lines += [f"  {line}" for line in jumps(index, run.horizon, statistics)]
        if not held_out or not run.validation_frames:
            why = (
                "no frame is held out" if run.validation_frames else "config.validation_frames is 0"
            )
            lines.append(f"  {index.name}: {why}: it is trained on without validation")
        lines += [f"  {index.name}: {finding.text}" for finding in index_findings(index)]
    for name, robot in data.robots.items():
        steps = robot.embodiment.execute_steps
        if steps > run.horizon:
            lines.append(
                f"  {name}: rollouts execute {steps} steps of a chunk, as its robot's record says, and refuse config.horizon {run.horizon}"
            )
        lines += [f"  {line}" for line in remarkable_dimensions(name, robot, run.normalization)]
    return "\n".join(lines)


def _tokenizer(run: RunConfig) -> Tokenizer:
    """Opens the tokenizer; raises InputError if it has more pieces than the model embeds."""
    tokenizer = Tokenizer.open(run.tokenizer)
    vocabulary = model_config(run).gemma.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise InputError(
            f"config.tokenizer {run.tokenizer} has {tokenizer.vocab_size} pieces, variant {run.variant} embeds {vocabulary}"
        )
    return tokenizer


def _index(run: RunConfig, name: str, processes: Processes) -> Index:
    """Builds or opens a dataset's index."""
    return build_or_open(_row(run, name), run.data_dir, run.index_dir or None, progress=processes.first, workers=default_workers(),
                         skip_bad_episodes=run.skip_bad_episodes)  # fmt: skip


def _row(run: RunConfig, name: str) -> Dataset:
    """Returns a dataset's row, of the run's own datasets or of the known ones."""
    return find_row(name, run.own_datasets, keep_empty_language=run.keep_empty_language)


def _robots(run: RunConfig, indices: list[Index], processes: Processes) -> dict[str, Robot]:
    """Returns the robots, with statistics that process 0 computes for all.

    Another CPU might round the statistics otherwise.
    """
    statistics = (
        {index.name: index_statistics(index, run.horizon) for index in indices}
        if processes.first
        else {}
    )
    text = processes.broadcast(
        "statistics",
        json.dumps({name: normalize.to_json(value) for name, value in statistics.items()}),
    )
    if not processes.first:
        statistics = {
            name: normalize.from_json(record, "statistics of process 0")
            for name, record in json.loads(text).items()
        }
    return {index.name: Robot(index.embodiment, statistics[index.name]) for index in indices}


def _fingerprints(run: RunConfig, tokenizer: Tokenizer, indices: list[Index]) -> dict[str, str]:
    """Returns what must be the same on all processes: config, indices and tokenizer."""
    local = fields.names(RunConfig, "per_process")
    stated = {
        f"config.{name}": repr(value) for name, value in to_json(run).items() if name not in local
    }
    digests = {f"dataset {index.name}: digest of the index": index.digest for index in indices}
    return (
        stated
        | digests
        | {"config.tokenizer: hash of the model": hashlib.sha256(tokenizer.model).hexdigest()[:16]}
    )


def _check_same_data(
    run: RunConfig, tokenizer: Tokenizer, indices: list[Index], stored: Description
) -> None:
    """Raises InputError if the data or the tokenizer are not those with which the run began."""
    if tokenizer.model != stored.tokenizer.model:
        raise InputError(
            f"config.tokenizer {run.tokenizer}: the model differs from the checkpoint's"
        )
    for index in indices:
        if index.embodiment != stored.robots[index.name].embodiment:
            raise InputError(
                f"dataset {index.name}: its embodiment differs from that of the checkpoint of step {stored.position}"
            )
        if index.digest != stored.digests[index.name]:
            raise InputError(
                f"dataset {index.name}: the digest of its index is {index.digest}, in the checkpoint of step {stored.position}"
                f" {stored.digests[index.name]}: files or rule have changed since, or lie elsewhere"
                " (behind a URL a digest is made of the storage's own checksums, so it is not that of the same files on a disk)"
            )


def _check_prompts(tokenizer: Tokenizer, index: Index, run: RunConfig) -> None:
    """Raises InputError for a prompt over the limit, before the run meets it in a batch."""
    lengths = {prompt: len(tokenizer.pieces(prompt)) for prompt in index.prompts}
    over = [prompt for prompt, length in lengths.items() if length > run.max_tokens]
    if over and not run.cut_prompts:
        longest = max(over, key=lengths.__getitem__)
        raise InputError(
            f"dataset {index.name}: {len(over)} of {len(lengths)} prompts have more tokens than config.max_tokens, {run.max_tokens};"
            f" the longest has {lengths[longest]}: {longest!r}; raise it, or let prompts be cut with config.cut_prompts"
        )
