"""Validation runs on held-out episodes.

It computes the flow loss at fixed noise and times, and the error of sampled actions in physical
units.
"""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pi0_jax import preprocess, sharding
from pi0_jax.errors import InputError
from pi0_jax.preprocess.deltas import action_error
from pi0_jax.train.config import RunConfig
from pi0_jax.train.data import Data
from pi0_jax.train.metrics import METRICS_FILE, read_metrics
from pi0_jax.train.state import make_model, step_options
from pi0_jax.train.step import Weights, validation_step

DRAWS = 4  # of noise and time for each frame


class Validation:
    """Validates weights on a run's held-out frames; all processes call it together."""

    def __init__(self, run: RunConfig, data: Data, mesh: Mesh, rows: Sequence[int]) -> None:
        """Prepares the validation; its step is compiled at the first call.

        Args:
            run: the run's config.
            data: the run's data.
            mesh: the devices.
            rows: the rows of every batch that this process prepares.
        """
        self._run, self._data, self._mesh, self._rows = run, data, mesh, rows
        step = partial(
            validation_step,
            model=make_model(run, mesh),
            options=step_options(run, data.batcher.layout),
            seed=run.seed,
            draws=DRAWS,
            num_steps=run.sampling_steps,
        )
        # Its results are whole on every device.
        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))

    def __call__(self, weights: Weights) -> dict[str, float]:
        """Runs all held-out frames, one or more.

        Returns:
            Metrics: validation/loss; validation/<name>/loss for every dataset; and
            validation/<name>/error/<dimension> for each of its action dimensions, the mean absolute
            error over the steps within the episode, in the dimension's unit.
        """
        samples, batcher, size = self._data.held_out, self._data.batcher, self._run.batch_size
        losses, errors = [], []
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            # The last batch is filled up with its last sample, whose results are dropped.
            padded = part + [part[-1]] * (size - len(part))
            batch = batcher.assemble(
                [padded[row] for row in self._rows], [start + row for row in self._rows]
            )
            result = jax.device_get(self._step(weights, sharding.place_batch(batch, self._mesh)))
            losses.extend(result["loss"][: len(part)])
            for sample, units in zip(part, result["actions"][: len(part)], strict=True):
                robot = batcher.robots[sample.dataset]
                actions = preprocess.to_robot(
                    units, sample.observation["state"], robot, batcher.layout.normalization
                )
                error = action_error(actions, sample.actions, robot.embodiment)
                errors.append(error[sample.action_valid])
        metrics = {"validation/loss": float(np.mean(losses))}
        for dataset, name in enumerate(self._run.datasets):
            mine = [i for i, sample in enumerate(samples) if sample.dataset == dataset]
            if not mine:  # this dataset holds out no frame
                continue
            metrics[f"validation/{name}/loss"] = float(np.mean([losses[i] for i in mine]))
            means = np.concatenate([errors[i] for i in mine]).mean(axis=0)
            dims = batcher.robots[dataset].embodiment.actions
            for dim, value in zip(dims, means, strict=True):
                metrics[f"validation/{name}/error/{dim.name}"] = float(value)
        return metrics


def check_keep_best(run: RunConfig, data: Data) -> None:
    """Raises InputError if the metric by which checkpoints are kept will not be there."""
    known = ["validation/loss"]
    for dataset in sorted({sample.dataset for sample in data.held_out}):
        prefix = f"validation/{run.datasets[dataset]}"
        dims = data.batcher.robots[dataset].embodiment.actions
        known += [f"{prefix}/loss", *(f"{prefix}/error/{dim.name}" for dim in dims)]
    if run.keep_best and not (data.held_out and run.keep_best_metric in known):
        expected = f"one of {', '.join(known)}" if data.held_out else "held-out frames, found none"
        raise InputError(
            f"config.keep_best_metric is {run.keep_best_metric!r}; expected {expected}"
        )


def was_missed(run: RunConfig, workdir: epath.Path, latest: int | None) -> bool:
    """Returns whether the checkpoint's step was to be validated and was not, as after a signal."""
    if latest is None or (latest % run.validate_every and latest != run.steps):
        return False
    lines = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
    return not any(line["step"] == latest and "validation/loss" in line for line in lines)
