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
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
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
from pi0_jax.freed_memory import SETTLING, give_back_freed_memory
from pi0_jax.observation import FrameId, TrainBatch
from pi0_jax.progress import progress_bar
from pi0_jax.train import config
from pi0_jax.train.config import RunConfig
from pi0_jax.train.data import Data, local_rows, prepare_data, summary, train_batches
from pi0_jax.train.distributed import SILENCE_SECONDS, Processes, StopSignal
from pi0_jax.train.metrics import (
    METRICS_FILE,
    Clock,
    MetricsWriter,
    Profile,
    Tracer,
    finite,
    write_nonfinite,
)
from pi0_jax.train.optimizer import learning_rate
from pi0_jax.train.state import CompiledStep, compile_step, named_out_of_memory, run_mesh
from pi0_jax.train.step import TrainState, averaged
from pi0_jax.train.validation import Validation, check_keep_best, was_missed
from pi0_jax.train.weights import check_start, initial_state
from pi0_jax.train.workdir import WorkdirLock, check_shared, choose_step


class _Context(NamedTuple):
    """Holds what the loop needs beside the state."""

    run: RunConfig
    workdir: epath.Path
    data: Data
    stream: Iterator[TrainBatch]  # this process's rows of the batches to come
    compiled: CompiledStep | None  # None where all steps are done
    validate: Validation
    processes: Processes
    checkpoints: RunCheckpoints
    lock: WorkdirLock | None  # in the first process
    metrics: MetricsWriter | None  # in the first process
    tracer: Tracer
    stop: StopSignal
    progress: tqdm  # the numbers of the steps to come, from 1, shown as a bar


def train(
    run: RunConfig,
    workdir: str | os.PathLike[str],
    *,
    profile: Profile | None = None,
    silence_seconds: int = SILENCE_SECONDS,
    step: int | None = None,
) -> None:
    """Starts or resumes the training of a workdir, up to run.steps or a signal (StopSignal).

    It continues from the newest whole checkpoint, or from that of `step`. Later and damaged
    checkpoints are moved aside (workdir.py). Where jax.distributed is initialised, every process
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
        enter, first = closing.enter_context, processes.first
        say = partial(print, flush=True)
        mesh = run_mesh(run, jax.devices())
        lock = enter(WorkdirLock(workdir, say)) if first else None
        stop = enter(StopSignal(processes, before_exit=lock.release if lock else lambda: None))
        check_shared(workdir, processes)
        # The checkpoint to go on from.
        chosen = choose_step(workdir, processes, step, say, partial(_resumable, run, workdir))
        latest, stored, resumed = None, None, None
        if chosen is None:
            check_start(run)
        else:
            latest, (stored, before) = chosen
            resumed = latest, before
        # The config and the data.
        if first:
            print(config.describe(run))
        data = prepare_data(run, processes, stored)
        check_keep_best(run, data)
        if first:
            mesh_sizes = f"mesh {dict(mesh.shape)}, {processes.count} processes"
            print(f"{mesh_sizes}, {summary(run, data, mesh)}")
            config.write(run, workdir, resumed)
        # The state.
        checkpoints = RunCheckpoints(
            workdir,
            keep=run.keep_checkpoints,
            keep_every=run.keep_every,
            keep_best=run.keep_best,
            metric=run.keep_best_metric,
        )
        # A save in progress is finished also after an error.
        enter(contextlib.closing(checkpoints))
        enter(named_out_of_memory(run))
        state = initial_state(run, mesh, checkpoints, latest)
        start, rows = int(state.step), local_rows(mesh, run.batch_size)
        missed = processes.broadcast(
            "missed", json.dumps(first and was_missed(run, workdir, latest))
        )
        metrics = enter(contextlib.closing(MetricsWriter(workdir, start=start))) if first else None
        tracer = enter(Tracer(profile, workdir))
        # The batches, and the step compiled for the first of them.
        made = train_batches(
            data.order,
            data.batcher,
            rows=rows,
            start=start,
            stop=run.steps,
            threads=run.loader_threads,
            prefetch=run.prefetch_batches,
        )
        enter(contextlib.closing(made))
        compiled, stream = _compile_first(run, data, state, made)
        if first and compiled is not None:
            print(compiled.text)
        # Closing the bar ends its line before an error is printed.
        progress = enter(
            progress_bar(
                range(start + 1, run.steps + 1),
                initial=start,
                total=run.steps,
                desc="train",
                unit="step",
                disable=not first,
            )
        )
        validate = Validation(run, data, mesh, rows)
        ctx = _Context(
            run, workdir, data, stream, compiled, validate, processes, checkpoints, lock, metrics,
            tracer, stop, progress,
        )  # fmt: skip
        if json.loads(missed) and data.held_out:
            _write(ctx, start, validate(averaged(state)))
        done = _loop(ctx, state)
        if first:
            progress.close()
            if done < run.steps:
                print(
                    f"{stop.name}: stopped after step {done}, which is saved;"
                    " the same command goes on from there"
                )
            else:
                print(
                    f"{'' if start < done else 'nothing to do: '}all {done} steps are done;"
                    f" {workdir} holds {FOLDER}/ and {METRICS_FILE}"
                )


def _resumable(run: RunConfig, workdir: epath.Path, step: int) -> tuple[Description, RunConfig]:
    """Returns a step's description and its run's config; InputError if `run` differs."""
    stored = read_resumable(workdir, step)
    where = f"{workdir / FOLDER / str(step)}: config"
    before = config.from_halves(stored.policy, stored.training, where)
    config.check_resumes(run, before)
    return stored, before


def _compile_first(
    run: RunConfig, data: Data, state: TrainState, made: Iterator[TrainBatch]
) -> tuple[CompiledStep | None, Iterator[TrainBatch]]:
    """Compiles the step for the first batch, and returns it with all batches; None without one."""
    first = next(made, None)
    if first is None:
        return None, made
    mesh = state.step.sharding.mesh
    batch = sharding.place_batch(first, mesh)
    step = compile_step(run, data.batcher.layout, state, batch, mesh)
    give_back_freed_memory()  # of drawing the state and of compiling
    return step, itertools.chain([first], made)


def _loop(ctx: _Context, state: TrainState) -> int:
    """Runs the steps and returns how many are done, all of them saved."""
    run, mesh = ctx.run, state.step.sharding.mesh
    start = done = int(state.step)
    # Jitted: it would be a dozen programs.
    schedule, clock = jax.jit(learning_rate(run)), Clock()
    # A batch's number -> its frames, and the metrics of its step.
    unchecked: dict[int, tuple[FrameId, Mapping[str, jax.Array]]] = {}
    for done in ctx.progress:
        assert ctx.compiled is not None  # there are batches
        ctx.tracer.before(done - 1)
        with clock.waiting():
            batch = sharding.place_batch(next(ctx.stream), mesh)
        state, values = ctx.compiled.step(state, batch)
        unchecked[done - 1] = batch.frames, values
        ctx.tracer.after(done, state)
        if done <= start + SETTLING:
            jax.block_until_ready(state)
            give_back_freed_memory()
        last = done == run.steps
        stopping = ctx.stop.reached(done) and not last
        logging = done % run.log_every == 0 or last
        saving = done % run.save_every == 0 or last or stopping
        validating = (done % run.validate_every == 0 or last) and bool(ctx.data.held_out)
        if not (logging or saving or validating):
            continue
        jax.block_until_ready(state)  # so that the clock counts this time for the steps
        ctx.checkpoints.check()
        if ctx.lock is not None:
            ctx.lock.check()
        if values["halted"]:
            _halt(ctx, state, unchecked)
        unchecked.clear()
        if logging:
            scalars = _scalars(run, jax.device_get(values))
            rates = clock.rates(done - start, run.batch_size)
            rates |= ctx.compiled.speed(rates["steps_per_second"])
            rate = float(schedule(done - 1 - scalars["skipped"]))
            ctx.progress.set_postfix(loss=f"{scalars['loss']:.4g}", refresh=False)
            _write(ctx, done, scalars | {"learning_rate": rate} | rates)
        with clock.outside():
            validation: dict[str, float] = {}
            # It comes before saving. So a checkpoint's validation is never lost, and the
            # checkpoints know which of them are the best.
            if validating and not stopping:
                validation = ctx.validate(averaged(state))
                _write(ctx, done, validation)
            # Validation and saving take and free other arrays than steps do. What lies free between
            # these is of no use to a step.
            give_back_freed_memory()
            if saving:
                _save(ctx, state, done, validation)
                give_back_freed_memory()
        if stopping:
            break
    ctx.checkpoints.wait()
    return done


def _write(ctx: _Context, step: int, values: Mapping[str, float]) -> None:
    if ctx.metrics is not None:
        ctx.metrics.write(step, values)


def _scalars(run: RunConfig, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns a step's metrics as numbers; a dataset that is not in the batch has NaN for a loss."""
    names = ("loss", "gradient_norm", "parameter_norm", "skipped")
    losses = zip(run.datasets, values["dataset_loss"], strict=True)
    return {name: float(values[name]) for name in names} | {
        f"loss/{dataset}": float(loss) for dataset, loss in losses
    }


def _save(ctx: _Context, state: TrainState, done: int, validation: Mapping[str, float]) -> None:
    """Starts saving the state after `done` steps."""
    if ctx.metrics is not None:
        ctx.metrics.flush()  # A run that resumes from this checkpoint will not write them again.
    description = Description(
        config.policy_half(ctx.run),
        config.training_half(ctx.run),
        ctx.data.robots,
        ctx.data.tokenizer,
        position=done,
        digests=ctx.data.digests,
    )
    ctx.checkpoints.save(state, description, finite(validation))


def _halt(
    ctx: _Context,
    state: TrainState,
    unchecked: Mapping[int, tuple[FrameId, Mapping[str, jax.Array]]],
) -> NoReturn:
    """Saves the state before the bad batch, writes this batch's frames to a file, and raises."""
    run, number = ctx.run, int(state.step)
    frames, values = unchecked[number]
    frames = FrameId(*multihost_utils.process_allgather(tuple(frames), tiled=True))
    path = ctx.workdir / "nonfinite" / f"step_{number}.jsonl"
    if ctx.processes.first:
        write_nonfinite(path, ctx.data.order.mixture, frames, np.asarray(values["row_loss"]))
    _save(ctx, state._replace(skipped=state.skipped - 1), number, {})
    ctx.checkpoints.wait()
    raise InputError(
        f"batch {number}: loss {float(values['loss'])}, gradient norm"
        f" {float(values['gradient_norm'])}, after {run.skip_nonfinite} such batches that"
        " config.skip_nonfinite allows; no parameter was changed, and the state before this batch"
        f" is saved. Look at its frames, the most suspicious first: head {path}"
    )
