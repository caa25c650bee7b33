"""Training takes a config and makes a run's folder.

    config = train.load("reach")           # a recipe of configs/, or a file of your own
    config.steps = 100
    train.run(config, "runs/reach/train")

A config of your own begins with `train.defaults()`, which has every field at its default. RunConfig
says what the fields mean.
"""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from pi0_jax.train.config import RunConfig, defaults
from pi0_jax.train.recipes import load, resolve

__all__ = ["RunConfig", "defaults", "load", "run"]


def run(
    config: str | os.PathLike[str] | ConfigDict | Mapping[str, Any] | RunConfig,
    workdir: str | os.PathLike[str],
) -> None:
    """Trains π0, or continues the run that the workdir holds.

    It ends when all steps are done, or after SIGTERM, SIGINT (Ctrl-C) or SIGHUP, when it has saved.
    Before the first step, and at a second signal, these end the whole process at once, a notebook's
    too. The workdir is the run: it holds checkpoints, `config.json`, `metrics.jsonl` and
    TensorBoard's files, and `pi0_jax.Policy.open(workdir)` is its policy. In a job of several
    processes each one makes this call, after `jax.distributed.initialize`.

    Args:
        config: a recipe's name ("reach", "pi0_finetune:lora"), a config file, what `load` or
            `defaults` gave, fields as plain data, or a RunConfig.
        workdir: a folder, or a gs:// or s3:// URL.

    Raises:
        InputError: the config or the data are wrong; the workdir was begun with another config or
            other data (the fields are named); a loss or gradient is not finite; a checkpoint cannot
            be written; memory is short.
    """
    # The import stands here because a config file imports this package and needs no training code.
    from pi0_jax.train.loop import train

    train(resolve(config), workdir)
