"""Training takes a config and makes a run's folder.

    config = train.load("reach")           # a recipe of configs/, or a file of your own
    config.steps = 100
    train.run(config, "runs/reach/train")

A config of your own begins with `train.defaults()`, which has every field at its default. RunConfig
says what the fields mean.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pi0_jax.errors import InputError
from pi0_jax.train.config import RunConfig, defaults, from_mapping

__all__ = ["RunConfig", "defaults", "load", "run"]

_PACKAGE = Path(__file__).parents[1]
# A wheel has the recipes inside the package, a checkout beside it.
FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


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


def load(name: str | os.PathLike[str]) -> ConfigDict:
    """Loads a config, whose fields may then be changed.

    Args:
        name: a recipe's name or a file's path: "reach", "pi0_finetune:lora", "mine.py".

    Returns:
        What the file's `get_config` returns.

    Raises:
        InputError: there is no such recipe or file, or its get_config returns no ConfigDict.
    """
    name = os.fspath(name)
    try:
        path = find_recipe(name)
    except ValueError as error:
        raise InputError(f"config {name!r}: {error}") from error
    # ml_collections loads a file as the value of a flag.
    alone = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=alone)
    alone(["", f"--config={path}"])
    config = alone["config"].value
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{path}: expected a get_config() that returns a ConfigDict,"
            f" found {type(config).__name__}"
        )
    return config


def find_recipe(name: str) -> str:
    """Finds a config by a recipe's name or a file's path.

    Args:
        name: such as "reach", "pi0_finetune:lora" or "mine.py"; what follows a colon is the
            argument of the file's get_config.

    Returns:
        The file's path, with what follows the colon.

    Raises:
        ValueError: it is neither a recipe nor a file.
    """
    name, colon, argument = name.partition(":")
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    recipes = {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}
    file = recipes.get(name, Path(name))
    if not file.is_file():
        raise ValueError(f"expected a file or a recipe ({', '.join(recipes)}), found neither")
    return f"{file}{colon}{argument}"


def resolve(
    config: str | os.PathLike[str] | ConfigDict | Mapping[str, Any] | RunConfig,
) -> RunConfig:
    """Returns the typed config that a recipe's name, a file, a page or plain data stand for.

    Raises:
        InputError: there is no such recipe or file, or a field is wrong; all mistakes are named.
    """
    if isinstance(config, str | os.PathLike):
        config = load(config)
    # A RunConfig was made without the checks of several fields.
    if isinstance(config, RunConfig):
        return from_mapping(vars(config))
    return from_mapping(config.to_dict() if isinstance(config, ConfigDict) else config)
