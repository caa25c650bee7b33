"""Validation runs on held-out episodes.

It computes the flow loss at fixed noise and times, and the error of sampled actions in physical
units.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from pi0_jax import preprocess, sharding
from pi0_jax.observation import Sample, TrainBatch
from pi0_jax.preprocess import Robot
from pi0_jax.preprocess.deltas import action_error
from pi0_jax.train.batches import Batcher
from pi0_jax.train.step import Weights

# It takes a batch on the devices and gives {"loss": float32[B], "actions": float32[B, H, D]}.
ValidationStep = Callable[[Weights, TrainBatch], Mapping[str, jax.Array]]


def metric_names(names: Sequence[str], robots: Sequence[Robot]) -> list[str]:
    """Returns the names of `validate`'s metrics, for datasets with these names and robots."""
    losses = ["validation/loss", *(f"validation/{name}/loss" for name in names)]
    robots_by_name = zip(names, robots, strict=True)
    return losses + [
        f"validation/{name}/error/{dim.name}"
        for name, robot in robots_by_name
        for dim in robot.embodiment.actions
    ]


def validate(
    step: ValidationStep,
    weights: Weights,
    *,
    samples: Sequence[Sample],
    names: Sequence[str],
    batcher: Batcher,
    batch_size: int,
    mesh: Mesh,
    rows: Sequence[int],
) -> dict[str, float]:
    """Runs all samples, one or more, through `step`.

    Args:
        step: the jitted validation step.
        weights: the weights to validate.
        samples: the held-out frames.
        names: the datasets' names, in the order of a mixture.
        batcher: makes batches of samples.
        batch_size: the number of samples in a step.
        mesh: the devices.
        rows: the rows of every batch that this process prepares.

    Returns:
        Metrics: validation/loss; validation/<name>/loss for every dataset; and
        validation/<name>/error/<dimension> for each of its action dimensions, the mean absolute
        error over the steps within the episode, in the dimension's unit.
    """
    losses, chunks = [], []
    for start in range(0, len(samples), batch_size):
        part = list(samples[start : start + batch_size])
        # The last batch is filled up with its last sample; the results of the filling are dropped.
        padded = part + [part[-1]] * (batch_size - len(part))
        batch = batcher.assemble([padded[row] for row in rows], [start + row for row in rows])
        result = jax.device_get(step(weights, sharding.place_batch(batch, mesh)))
        losses.extend(result["loss"][: len(part)])
        for sample, actions in zip(part, result["actions"][: len(part)], strict=True):
            robot = batcher.robots[sample.dataset]
            chunks.append(
                preprocess.to_robot(
                    actions, sample.observation["state"], robot, batcher.layout.normalization
                )
            )
    metrics = {"validation/loss": float(np.mean(losses))}
    for dataset, name in enumerate(names):
        mine = [i for i, sample in enumerate(samples) if sample.dataset == dataset]
        if not mine:  # this dataset holds out no frame
            continue
        metrics[f"validation/{name}/loss"] = float(np.mean([losses[i] for i in mine]))
        embodiment = batcher.robots[dataset].embodiment
        error = np.concatenate(
            [
                action_error(chunks[i], samples[i].actions, embodiment)[samples[i].action_valid]
                for i in mine
            ]
        ).mean(axis=0)
        for dim, value in zip(embodiment.actions, error, strict=True):
            metrics[f"validation/{name}/error/{dim.name}"] = float(value)
    return metrics
