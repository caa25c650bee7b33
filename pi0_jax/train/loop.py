"""The training loop, plain.

    prepare   the checkpoint to go on from; the config, printed and kept in config.json; indices, statistics, tokenizer; mesh, model,
              optimizer; the state, fresh or restored; the step, compiled
    repeat    wait for the batch -> step -> every log_every: write metrics
                                         -> every validate_every: validate the EMA
                                         -> every save_every, and on SIGTERM, SIGINT or SIGHUP: start saving
              at each of these: has a loss or gradient not been finite? has a save failed?
    end       wait for the save

The workdir is the run: the same call starts it or goes on from its latest checkpoint. Several processes (distributed.py) make the same
calls, each with its own rows of the batch; process 0 prints and writes metrics.
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
    """What the loop needs beside the state."""

    run: RunConfig
    workdir: epath.Path
    data: Data
    mesh: Mesh
    stream: Iterator[TrainBatch]  # this process's rows of the batches to come
    compiled: CompiledStep | None  # None where all steps are done
    validate: Callable[[Weights], dict[str, float]]  # gives metrics
    processes: Processes
    checkpoints: RunCheckpoints
    lock: WorkdirLock | None  # of the first process
    metrics: MetricsWriter | NoMetrics
    tracer: Tracer
    stop: StopSignal
    progress: tqdm  # numbers of the steps to come, from 1


def train(
    run: RunConfig,
    workdir: str | os.PathLike[str],
    *,
    profile: Profile | None = None,
    silence_seconds: int = SILENCE_SECONDS,
    step: int | None = None,
) -> None:
    """Runs or resumes the training that `workdir` (a folder or URL) holds, up to run.steps, or until a signal (stopping.py).

    It goes on from the newest whole checkpoint, or from that of `step`; later and damaged ones are moved aside (resumption.py).
    Where jax.distributed is initialised every process calls this; see Processes for how they end when one fails.

    Raises:
        InputError for wrong data or config; for a workdir in which another run trains, or of whose checkpoints none is whole; for one
        whose checkpoint was written by another config (the fields are listed) or from other data; for a loss or gradient that is not
        finite; where a checkpoint cannot be written; where memory is short.
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
        # also after an error: a save in progress is finished
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
        progress = closing.enter_context(  # ends its line before an error is printed
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
    """What a step says of itself, and its run's config. Raises InputError if `run` cannot go on from it."""
    stored = read_resumable(workdir, step)
    where = f"{workdir / FOLDER / str(step)}: config"
    before = config.from_halves(stored.policy, stored.training, where)
    config.check_resumes(run, before)
    return stored, before


def _compile_step(
    run: RunConfig, data: Data, model: Pi0, state: TrainState, stream: Iterator[TrainBatch]
) -> tuple[CompiledStep | None, Iterator[TrainBatch]]:
    """For the stream's first batch, which is still to come; nothing where there is none."""
    first = next(stream, None)
    if first is None:
        return None, stream
    batch = sharding.place_batch(first, state.step.sharding.mesh)
    return compile_step(run, data.batcher.layout, model, state, batch), itertools.chain(
        [first], stream
    )


def _loop(ctx: _Context, state: TrainState) -> int:
    """Returns the steps done, all of them saved."""
    run, checkpoints, metrics = ctx.run, ctx.checkpoints, ctx.metrics
    start = done = int(state.step)
    schedule = learning_rate(run)
    stream = ctx.stream
    clock = _Clock()
    unchecked: dict[
        int, tuple[FrameId, Mapping[str, jax.Array]]
    ] = {}  # batch -> its frames and what its step said
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
        jax.block_until_ready(state)  # so that the clock gives this time to the steps
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
            # before saving: a checkpoint's validation is never lost, and the best are known
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
    data = ctx.data
    ctx.metrics.flush()  # what the checkpoint's resumption will not do again
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
    """Whether the checkpoint's step was to be validated and was not, as when a signal came."""
    if latest is None or (latest % run.validate_every and latest != run.steps):
        return False
    lines = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
    return not any(line["step"] == latest and "validation/loss" in line for line in lines)


def _halt(
    ctx: _Context,
    state: TrainState,
    unchecked: Mapping[int, tuple[FrameId, Mapping[str, jax.Array]]],
) -> NoReturn:
    """The state is that before the batch that was one too many; it is saved, and what the batch held is written down."""
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
    held_out = sorted({sample.dataset for sample in data.held_out})
    names = [run.datasets[dataset] for dataset in held_out]
    robots = [data.batcher.robots[dataset] for dataset in held_out]
    known = metric_names(names, robots) if held_out else ["none, since no frame is held out"]
    if run.keep_best and run.keep_best_metric not in known:
        raise InputError(
            f"config.keep_best_metric is {run.keep_best_metric!r}; expected one of {', '.join(known)}"
        )


def _check_skipped(run: RunConfig, skipped: int) -> None:
    if skipped > run.skip_nonfinite:  # the state would halt at a batch that has nothing wrong
        raise InputError(
            f"config.skip_nonfinite is {run.skip_nonfinite}; expected at least {skipped}, the batches that this run has passed over already"
        )


def _scalars(run: RunConfig, values: Mapping[str, Any]) -> dict[str, float]:
    """Of what a step returns; a dataset that is not in the batch has NaN for a loss."""
    named = {
        name: float(values[name]) for name in ("loss", "gradient_norm", "parameter_norm", "skipped")
    }
    return named | {
        f"loss/{name}": float(loss)
        for name, loss in zip(run.datasets, values["dataset_loss"], strict=True)
    }


class _Clock:
    """Times the loop: how fast steps go, and which share of the time was spent waiting for data. Validation and saving do not count."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._done = 0
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def rates(self, done: int, batch_size: int) -> dict[str, float]:
        """Since the last call; `done` counts the steps of this process's run."""
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
