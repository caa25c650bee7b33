"""The training loop, plain.

    prepare   indices, statistics, tokenizer; mesh, model, optimizer; the state, fresh or restored
    repeat    wait for the batch -> step -> every log_every: write metrics
                                         -> every save_every: start saving
                                         -> every validate_every: validate the EMA
    end       save, wait for the save

The workdir is the run: the same call starts it or goes on from its latest checkpoint.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from pi0_jax import normalize, sharding
from pi0_jax.checkpoints import Description, RunCheckpoints
from pi0_jax.config import RunConfig, differing_fields, layout, model_config
from pi0_jax.data.datasets import find_row
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.mixture import Mixture
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import Sample, TrainBatch
from pi0_jax.preprocess import Layout, Robot, check_robot, used_slots
from pi0_jax.tokenizer import Tokenizer
from pi0_jax.train import batches
from pi0_jax.train.metrics import MetricsWriter
from pi0_jax.train.optimizer import learning_rate, make_optimizer
from pi0_jax.train.placement import state_shardings
from pi0_jax.train.step import StepOptions, TrainState, init_state, train_step, validation_step
from pi0_jax.train.validate import ValidationStep, validate

VALIDATION_DRAWS = 4

TrainStep = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]


class Data(NamedTuple):
    mixture: Mixture
    batcher: batches.Batcher
    held_out: list[Sample]
    robots: dict[str, Robot]  # of the mixture's datasets, then of those that only lend their statistics
    tokenizer: Tokenizer


def prepare_data(run: RunConfig) -> Data:
    """Opens (or builds) the indices and everything that follows from them."""
    tokenizer = Tokenizer.open(run.tokenizer)
    vocabulary = model_config(run).gemma.vocab_size
    if tokenizer.vocab_size > vocabulary:
        raise InputError(f"config.tokenizer {run.tokenizer} has {tokenizer.vocab_size} pieces, variant {run.variant} embeds {vocabulary}")
    indices = [_index(run, name) for name in run.datasets]
    weights = {i.name: weight * len(i.frames("train")) ** run.frames_power for i, weight in zip(indices, run.weights, strict=True)}
    mixture = Mixture(indices, weights, split="train", horizon=run.horizon, seed=run.seed)
    everything = [*indices, *(_index(run, name) for name in run.statistics_only)]
    for index in everything:
        for prompt in index.prompts:
            _check_prompt(tokenizer, prompt, run.max_tokens, index.name)
    robots = {index.name: Robot(index.embodiment, batches.statistics(index, run.horizon)) for index in everything}
    for index in indices:
        if not len(index.frames("val")):
            raise InputError(f"dataset {index.name}: no frames to validate on: its held-out episodes are none, or have no kept frames")
    slots = used_slots([index.embodiment for index in indices])
    for robot in robots.values():
        check_robot(robot, layout(run, slots))
    batcher = batches.Batcher([robots[name] for name in run.datasets], layout(run, slots), tokenizer, batches.canvas(indices))
    held_out = batches.held_out_samples(indices, per_dataset=run.validation_frames, horizon=run.horizon)
    return Data(mixture, batcher, held_out, robots, tokenizer)


def _check_prompt(tokenizer: Tokenizer, prompt: str, max_tokens: int, dataset: str) -> None:
    """A prompt over the limit is refused before the run, not when its batch comes up."""
    count = len(tokenizer.pieces(prompt))
    if count > max_tokens:
        raise InputError(f"dataset {dataset}: a prompt has {count} tokens, config.max_tokens is {max_tokens}: {prompt!r}")


def _index(run: RunConfig, name: str) -> Index:
    return build_or_open(find_row(name, run.own_datasets), run.data_dir, run.index_dir or None)


def train(run: RunConfig, workdir: str | Path) -> None:
    """Runs or resumes the training that `workdir` holds, up to run.steps.

    Raises:
        InputError for wrong data or config, and for a workdir whose checkpoint was written by another config (the fields are listed).
    """
    if "://" in str(workdir):
        raise InputError(f"workdir {workdir}: expected a local folder; remote ones are not supported yet")
    if jax.process_count() > 1:
        raise InputError(f"{jax.process_count()} processes: expected one; training on several is not supported yet")
    workdir = Path(workdir)
    mesh = sharding.make_mesh(data=run.mesh.data, fsdp=run.mesh.fsdp, tensor=run.mesh.tensor)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if run.batch_size % shards:
        raise InputError(f"config.batch_size {run.batch_size} is not a multiple of data x fsdp = {shards}")
    data = prepare_data(run)
    print(_summary(run, data, mesh))

    model = Pi0(model_config(run), jnp.dtype(run.dtype), run.scan_layers, run.remat, sharding.constrain_on(mesh))
    optimizer = make_optimizer(run)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:  # also after an error: a save in progress is finished
        checkpoints = closing.enter_context(contextlib.closing(RunCheckpoints(workdir, keep=run.keep_checkpoints)))
        state, shardings = _initial_state(run, data, model, optimizer, mesh, checkpoints)
        steps = _jitted_steps(run, data.batcher.layout, model, optimizer, shardings, mesh)
        metrics = closing.enter_context(contextlib.closing(MetricsWriter(workdir, start=int(state.step))))
        _loop(run, data, mesh, state, steps, checkpoints, metrics)


class Steps(NamedTuple):
    train: TrainStep
    validation: ValidationStep


def _jitted_steps(
    run: RunConfig, layout: Layout, model: Pi0, optimizer: optax.GradientTransformation, shardings: TrainState, mesh: Mesh
) -> Steps:
    options = StepOptions(run.seed, layout, run.draws, run.augment, run.loss_dims == "real", run.mask_past_end, run.ema_decay)
    whole = sharding.replicated(mesh)
    train = partial(train_step, model=model, optimizer=optimizer, options=options)
    validation = partial(validation_step, model=model, options=options, draws=VALIDATION_DRAWS, num_steps=run.sampling_steps)
    return Steps(jax.jit(train, donate_argnums=0, out_shardings=(shardings, whole)), jax.jit(validation, out_shardings=whole))


def _loop(
    run: RunConfig, data: Data, mesh: Mesh, state: TrainState, steps: Steps, checkpoints: RunCheckpoints, metrics: MetricsWriter
) -> None:
    start = int(state.step)
    schedule = learning_rate(run)
    stream = batches.train_batches(
        data.mixture, data.batcher, batch_size=run.batch_size, start=start, stop=run.steps,
        threads=run.loader_threads, prefetch=run.prefetch_batches,
    )  # fmt: skip
    clock = _Clock()
    for done in tqdm(range(start + 1, run.steps + 1), initial=start, total=run.steps, desc="train", unit="step", mininterval=1.0):
        with clock.waiting():
            batch = next(stream)
        state, values = steps.train(state, sharding.place_batch(batch, mesh))
        if done % run.log_every == 0 or done == run.steps:
            values = {name: float(value) for name, value in jax.device_get(values).items()}  # waits for the step
            metrics.write(done, values | {"learning_rate": float(schedule(done - 1))} | clock.rates(done - start, run.batch_size))
        saving, validating = (done % every == 0 or done == run.steps for every in (run.save_every, run.validate_every))
        if saving or validating:
            jax.block_until_ready(state)  # so that the clock gives this time to the steps
        with clock.outside():
            if saving:
                checkpoints.save(state, Description(run, data.robots, data.tokenizer, position=done))
            if validating:
                metrics.write(done, validate(steps.validation, state.ema, data.held_out, run.datasets, data.batcher, run.batch_size, mesh))


def _initial_state(
    run: RunConfig, data: Data, model: Pi0, optimizer: optax.GradientTransformation, mesh: Mesh, checkpoints: RunCheckpoints
) -> tuple[TrainState, TrainState]:
    """A fresh state, or the latest checkpoint's, and its shardings; created where it will live."""
    create = partial(init_state, model=model, optimizer=optimizer)
    key = jax.random.key(run.seed)
    abstract = jax.eval_shape(create, key)
    shardings = state_shardings(abstract, optimizer, mesh)
    latest = checkpoints.latest()
    if latest is None:
        return jax.jit(create, out_shardings=shardings)(key), shardings
    _check_same_run(Description(run, data.robots, data.tokenizer, latest), checkpoints.description(latest))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    return checkpoints.restore(latest, abstract), shardings


def _check_same_run(now: Description, stored: Description) -> None:
    """A run goes on only with the config, the data and the tokenizer that it began with."""
    if different := differing_fields(now.run, stored.run):
        raise InputError(f"the workdir holds a run of another config: {'; '.join(different)}")
    for name, robot in now.robots.items():
        if not _same_robot(robot, stored.robots[name]):
            raise InputError(
                f"dataset {name}: embodiment or statistics differ from the checkpoint's; the data have changed since step {now.position}"
            )
    if now.tokenizer.model != stored.tokenizer.model:
        raise InputError(f"config.tokenizer {now.run.tokenizer}: the model differs from the checkpoint's")


def _same_robot(ours: Robot, theirs: Robot) -> bool:
    """Statistics may differ by what another CPU or NumPy rounds otherwise."""
    pairs = zip(jax.tree.leaves(ours.statistics), jax.tree.leaves(theirs.statistics), strict=True)
    return ours.embodiment == theirs.embodiment and all(a.shape == b.shape and np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


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
        result = {"steps_per_second": rate, "samples_per_second": rate * batch_size, "data_wait_share": self._waited / elapsed}
        self._mark, self._done, self._waited, self._paused = now, done, 0.0, 0.0
        return result


def _summary(run: RunConfig, data: Data, mesh: Mesh) -> str:
    """What is about to be trained on, and on what."""
    lines = [f"mesh {dict(mesh.shape)}, batch {run.batch_size}, {run.draws} draws, variant {run.variant}"]
    for name, share in data.mixture.shares.items():
        index = data.mixture.indices[run.datasets.index(name)]
        training, held_out = len(index.frames("train")), len(index.frames("val"))
        lines.append(f"  {name}: {100 * share:.1f}% of samples, {training:,} training frames, {held_out:,} held out")
    for name, robot in data.robots.items():
        embodiment, statistics = robot
        for part, dims, vector in (("state", embodiment.state, statistics.state), ("actions", embodiment.actions, statistics.actions)):
            constant = [dim.name for dim, flag in zip(dims, normalize.constant(vector, run.normalization), strict=True) if flag]
            if constant:
                lines.append(f"  {name}: {part} {', '.join(constant)} hardly vary; they are centred, not scaled")
    return "\n".join(lines)
