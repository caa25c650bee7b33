"""The training loop is plain, and does this in order:

    prepare   the checkpoint to go on from; the config, printed and kept in config.json; indices,
              statistics, tokenizer; mesh, model, optimizer; the state, fresh or restored; the step,
              compiled
    repeat    wait for the batch -> step -> every log_every: write metrics
                                         -> every validate_every: validate the EMA
                                         -> every save_every, and on SIGTERM, SIGINT or SIGHUP:
                                            start saving
              at each of these: has a loss or gradient not been finite? has a save failed?
    end       wait for the save

The workdir is the run: the same call starts it or continues from its latest checkpoint. Several
processes (distributed.py) make the same calls, each with its own rows of the batch. Process 0
prints and writes metrics.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from pi0_jax import sharding
from pi0_jax.checkpoints import (
    FOLDER,
    Description,
    RunCheckpoints,
    locate,
    read_resumable,
)
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import FrameId, TrainBatch
from pi0_jax.progress import progress_bar
from pi0_jax.train import batches, config, nonfinite
from pi0_jax.train.compiled import CompiledStep, compile_step
from pi0_jax.train.config import RunConfig
from pi0_jax.train.distributed import SILENCE_SECONDS, Processes
from pi0_jax.train.footprint import named_out_of_memory
from pi0_jax.train.initial import check_start
from pi0_jax.train.lock import WorkdirLock
from pi0_jax.train.metrics import METRICS_FILE, MetricsWriter, NoMetrics, finite, read_metrics
from pi0_jax.train.optimizer import learning_rate
from pi0_jax.train.placement import make_model, run_mesh
from pi0_jax.train.prepare import Data, prepare_data, summary
from pi0_jax.train.profile import Profile, Tracer
from pi0_jax.train.resumption import choose_step
from pi0_jax.train.setup import initial_state, jitted_validation_step, local_rows
from pi0_jax.train.step import TrainState, Weights, averaged
from pi0_jax.train.stopping import StopSignal
from pi0_jax.train.validate import metric_names, validate


class _Context(NamedTuple):
    """Holds what the loop needs beside the state.

    Attributes:
        run: the config.
        workdir: the run's folder.
        data: what it trains on.
        mesh: the devices.
        stream: this process's rows of the batches to come.
        compiled: the compiled step; None where all steps are done.
        validate: gives metrics for weights.
        processes: the processes that train together.
        checkpoints: the run's checkpoints.
        lock: the workdir's lock, in the first process.
        metrics: writes metrics.
        tracer: traces the steps that the user names.
        stop: says whether a signal asks for a stop.
        progress: the numbers of the steps to come, from 1, shown as a bar.
    """

    run: RunConfig
    workdir: epath.Path
    data: Data
    mesh: Mesh
    stream: Iterator[TrainBatch]
    compiled: CompiledStep | None
    validate: Callable[[Weights], dict[str, float]]
    processes: Processes
    checkpoints: RunCheckpoints
    lock: WorkdirLock | None
    metrics: MetricsWriter | NoMetrics
    tracer: Tracer
    stop: StopSignal
    progress: tqdm


def train(
    run: RunConfig,
    workdir: str | os.PathLike[str],
    *,
    profile: Profile | None = None,
    silence_seconds: int = SILENCE_SECONDS,
    step: int | None = None,
) -> None:
    """Starts or resumes the training of a workdir, up to run.steps or a signal (stopping.py).

    It continues from the newest whole checkpoint, or from that of `step`. Later and damaged
    checkpoints are moved aside (resumption.py). Where jax.distributed is initialised, every process
    calls this; Processes says how they end when one fails.

    Args:
        run: the config.
        workdir: a folder or a URL.
        profile: the steps to trace; None traces none.
        silence_seconds: see Processes.
        step: the checkpoint to continue from; None takes the newest that is whole.

    Raises:
        InputError: the data or the config are wrong; another run trains in the workdir; none of its
            checkpoints is whole; its checkpoint was written by another config (the fields are
            listed) or from other data; a loss or gradient is not finite; a checkpoint cannot be
            written; memory is short.
    """
    workdir = locate(workdir)
    with Processes(silence_seconds) as processes, contextlib.ExitStack() as closing:
        mesh = run_mesh(run, jax.devices())
        tell = partial(print, flush=True)
        lock = closing.enter_context(WorkdirLock(workdir, tell)) if processes.first else None
        stop = closing.enter_context(
            StopSignal(processes, before_exit=lock.release if lock else lambda: None)
        )
        processes.check_shared(workdir)
        chosen = choose_step(workdir, processes, step, tell, partial(_resumable, run, workdir))
        latest, stored, resumed = None, None, None
        if chosen is None:
            check_start(run)
        else:
            latest, (stored, before) = chosen
            resumed = latest, before
        if processes.first:
            print(config.describe(run))
        data = prepare_data(run, processes, stored)
        _check_keep_best(run, data)
        if processes.first:
            print(
                f"mesh {dict(mesh.shape)}, {processes.count} processes, {summary(run, data, mesh)}"
            )
            config.write(run, workdir, resumed)

        model = make_model(run, mesh)
        checkpoints = RunCheckpoints(
            workdir,
            keep=run.keep_checkpoints,
            keep_every=run.keep_every,
            keep_best=run.keep_best,
            metric=run.keep_best_metric,
        )
        # A save in progress is finished also after an error.
        closing.enter_context(contextlib.closing(checkpoints))
        closing.enter_context(named_out_of_memory(run))
        state = initial_state(run, mesh, checkpoints, latest)
        _check_skipped(run, int(state.skipped))
        missed = json.loads(
            processes.broadcast(
                "missed", json.dumps(processes.first and _missed_validation(run, workdir, latest))
            )
        ) and bool(data.held_out)
        metrics = closing.enter_context(
            contextlib.closing(
                MetricsWriter(workdir, start=latest or 0) if processes.first else NoMetrics()
            )
        )
        tracer = closing.enter_context(Tracer(profile, workdir))
        start, rows = int(state.step), local_rows(mesh, run.batch_size)
        loaded = batches.train_batches(
            data.order,
            data.batcher,
            rows=rows,
            start=start,
            stop=run.steps,
            threads=run.loader_threads,
            prefetch=run.prefetch_batches,
        )
        closing.enter_context(contextlib.closing(loaded))
        compiled, stream = _compile_step(run, data, model, state, loaded)
        if processes.first and compiled is not None:
            print(compiled.text)
        # Closing the bar ends its line before an error is printed.
        progress = closing.enter_context(
            progress_bar(
                range(start + 1, run.steps + 1), initial=start, total=run.steps, desc="train", unit="step",
                disable=not processes.first,
            )
        )  # fmt: skip
        validation = partial(
            validate, jitted_validation_step(run, data.batcher.layout, model, mesh), samples=data.held_out, names=run.datasets,
            batcher=data.batcher, batch_size=run.batch_size, mesh=mesh, rows=rows,
        )  # fmt: skip
        ctx = _Context(
            run,
            workdir,
            data,
            mesh,
            stream,
            compiled,
            validation,
            processes,
            checkpoints,
            lock,
            metrics,
            tracer,
            stop,
            progress,
        )
        if missed:
            metrics.write(start, validation(averaged(state)))
        done = _loop(ctx, state)
        if processes.first:
            progress.close()
            if done < run.steps:
                print(
                    f"{stop.name}: stopped after step {done}, which is saved; the same command goes on from there"
                )
            else:
                print(
                    f"{'' if start < done else 'nothing to do: '}all {done} steps are done; {workdir} holds {FOLDER}/ and {METRICS_FILE}"
                )


def _resumable(run: RunConfig, workdir: epath.Path, step: int) -> tuple[Description, RunConfig]:
    """Returns what a step says of itself, and its run's config.

    It raises InputError if `run` cannot go on from it.
    """
    stored = read_resumable(workdir, step)
    where = f"{workdir / FOLDER / str(step)}: config"
    before = config.from_halves(stored.policy, stored.training, where)
    config.check_resumes(run, before)
    return stored, before


def _compile_step(
    run: RunConfig, data: Data, model: Pi0, state: TrainState, stream: Iterator[TrainBatch]
) -> tuple[CompiledStep | None, Iterator[TrainBatch]]:
    """Compiles the step for the stream's first batch; returns None where there is no batch.

    The stream that it returns begins with that batch again.
    """
    first = next(stream, None)
    if first is None:
        return None, stream
    batch = sharding.place_batch(first, state.step.sharding.mesh)
    return compile_step(run, data.batcher.layout, model, state, batch), itertools.chain(
        [first], stream
    )


def _loop(ctx: _Context, state: TrainState) -> int:
    """Runs the steps and returns how many are done, all of them saved."""
    run, checkpoints, metrics = ctx.run, ctx.checkpoints, ctx.metrics
    start = done = int(state.step)
    schedule = learning_rate(run)
    stream = ctx.stream
    clock = _Clock()
    # A batch's number -> its frames, and the metrics of its step.
    unchecked: dict[int, tuple[FrameId, Mapping[str, jax.Array]]] = {}
    for done in ctx.progress:
        assert ctx.compiled is not None  # there are batches
        ctx.tracer.before(done - 1)
        with clock.waiting():
            batch = sharding.place_batch(next(stream), ctx.mesh)
        state, values = ctx.compiled.step(state, batch)
        unchecked[done - 1] = batch.frames, values
        ctx.tracer.after(done, state)
        last = done == run.steps
        stopping = ctx.stop.reached(done) and not last
        logging, saving, validating = (
            done % every == 0 or last
            for every in (run.log_every, run.save_every, run.validate_every)
        )
        validating &= bool(ctx.data.held_out)
        if not (logging or saving or validating or stopping):
            continue
        jax.block_until_ready(state)  # so that the clock counts this time for the steps
        checkpoints.check()
        if ctx.lock is not None:
            ctx.lock.check()
        if values["halted"]:
            _halt(ctx, state, unchecked)
        unchecked.clear()
        if logging:
            scalars = _scalars(run, jax.device_get(values))
            updates = done - 1 - scalars["skipped"]
            rates = clock.rates(done - start, run.batch_size)
            rates |= ctx.compiled.speed(rates["steps_per_second"])
            ctx.progress.set_postfix(loss=f"{scalars['loss']:.4g}", refresh=False)
            metrics.write(done, scalars | {"learning_rate": float(schedule(updates))} | rates)
        with clock.outside():
            validation: dict[str, float] = {}
            # It comes before saving. So a checkpoint's validation is never lost, and the
            # checkpoints know which of them are the best.
            if validating and not stopping:
                validation = ctx.validate(averaged(state))
                metrics.write(done, validation)
            if saving or stopping:
                _save(ctx, state, done, validation)
        if stopping:
            break
    checkpoints.wait()
    return done


def _save(ctx: _Context, state: TrainState, done: int, validation: Mapping[str, float]) -> None:
    """Starts saving the state after `done` steps."""
    data = ctx.data
    ctx.metrics.flush()  # A run that resumes from this checkpoint will not write them again.
    description = Description(
        config.policy_half(ctx.run),
        config.training_half(ctx.run),
        data.robots,
        data.tokenizer,
        position=done,
        digests=data.digests,
    )
    ctx.checkpoints.save(state, description, finite(validation))


def _missed_validation(run: RunConfig, workdir: epath.Path, latest: int | None) -> bool:
    """Returns whether the checkpoint's step was to be validated and was not, as after a signal."""
    if latest is None or (latest % run.validate_every and latest != run.steps):
        return False
    lines = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
    return not any(line["step"] == latest and "validation/loss" in line for line in lines)


def _halt(
    ctx: _Context,
    state: TrainState,
    unchecked: Mapping[int, tuple[FrameId, Mapping[str, jax.Array]]],
) -> NoReturn:
    """Saves the state, writes down what the bad batch held, and raises InputError.

    The state is that before the batch that was one too many.
    """
    run, workdir = ctx.run, ctx.workdir
    number = int(state.step)
    frames, values = unchecked[number]
    frames = FrameId(*multihost_utils.process_allgather(tuple(frames), tiled=True))
    path = workdir / nonfinite.FOLDER / f"step_{number}.jsonl"
    if ctx.processes.first:
        nonfinite.write_frames(path, ctx.data, frames, np.asarray(values["row_loss"]))
    _save(ctx, state._replace(skipped=state.skipped - 1), number, {})
    ctx.checkpoints.wait()
    raise InputError(
        f"batch {number}: loss {float(values['loss'])}, gradient norm {float(values['gradient_norm'])}, after {run.skip_nonfinite} such"
        f" batches that config.skip_nonfinite allows; no parameter was changed, and the state before this batch is saved."
        f" Look at its frames, the most suspicious first: head {path}"
    )


def _check_keep_best(run: RunConfig, data: Data) -> None:
    """Raises InputError if the metric by which checkpoints are kept will not be there."""
    held_out = sorted({sample.dataset for sample in data.held_out})
    names = [run.datasets[dataset] for dataset in held_out]
    robots = [data.batcher.robots[dataset] for dataset in held_out]
    known = metric_names(names, robots) if held_out else ["none, since no frame is held out"]
    if run.keep_best and run.keep_best_metric not in known:
        raise InputError(
            f"config.keep_best_metric is {run.keep_best_metric!r}; expected one of {', '.join(known)}"
        )


def _check_skipped(run: RunConfig, skipped: int) -> None:
    """Raises InputError if the run has passed over more batches already than the config allows."""
    # Otherwise the state would halt at a batch that has nothing wrong.
    if skipped > run.skip_nonfinite:
        raise InputError(
            f"config.skip_nonfinite is {run.skip_nonfinite}; expected at least {skipped}, the batches that this run has passed over already"
        )


def _scalars(run: RunConfig, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a step's metrics.

    A dataset that is not in the batch has NaN for a loss.
    """
    named = {
        name: float(values[name]) for name in ("loss", "gradient_norm", "parameter_norm", "skipped")
    }
    return named | {
        f"loss/{name}": float(loss)
        for name, loss in zip(run.datasets, values["dataset_loss"], strict=True)
    }


class _Clock:
    """Times the loop: how fast steps go, and which share of the time is spent waiting for data.

    Validation and saving do not count.
    """

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._done = 0
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Leaves the time of the block out of all rates."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def rates(self, done: int, batch_size: int) -> dict[str, float]:
        """Returns the rates since the last call.

        Args:
            done: the steps that this process's run has done.
            batch_size: the number of samples in a step.
        """
        now = time.perf_counter()
        elapsed = now - self._mark - self._paused
        rate = (done - self._done) / elapsed
        result = {
            "steps_per_second": rate,
            "samples_per_second": rate * batch_size,
            "data_wait_share": self._waited / elapsed,
        }
        self._mark, self._done, self._waited, self._paused = now, done, 0.0, 0.0
        return result
