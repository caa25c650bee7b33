"""Defines --config for the scripts that take a run: a recipe of configs/ by name, or a file."""

from typing import Any

from absl import flags
from ml_collections import config_flags

from pi0_jax.errors import InputError
from pi0_jax.train import find_recipe

# --help then lists the flag as one of the script that asks for it.
flags.disclaim_key_flags()


def config_flag(
    default: str | None = None, help: str = "The run.", name: str = "config"
) -> flags.FlagHolder:
    """Defines --config, and --config.FIELD for every field.

    Args:
        default: the flag's value as on a command line, such as "reach", "pi0_finetune:lora" or
            "mine.py".
        help: what the script takes the run for.
        name: the flag's name, where a script takes several runs.
    """
    forms = "A recipe's name or a file: reach, pi0_finetune:lora, mine.py"
    holder = config_flags.DEFINE_config_file(
        name, help_string=f"{help} {forms}; single fields by --{name}.field=value."
    )
    flag = flags.FLAGS[holder.name]
    flag.parser = _ByName(flag.parser)
    if default is not None:
        flags.set_default(holder, default)
    return holder


class _ByName(flags.ArgumentParser):
    """Lets a parser of config files find a recipe by its name."""

    def __init__(self, of_files: flags.ArgumentParser) -> None:
        self._of_files = of_files

    def parse(self, argument: str) -> Any:
        return self._of_files.parse(find_recipe(argument))


def config_mapping(flag: flags.FlagHolder) -> dict[str, Any]:
    """Returns the fields of a flag that names a config; raises InputError if it holds none."""
    try:
        return flag.value.to_dict()
    # ml_collections reports a missing file only when the value is used.
    except OSError as error:
        raise InputError(str(error.__cause__ or error)) from error
    except AttributeError as error:
        expected = "expected a file whose get_config() returns a ConfigDict"
        found = type(flag.value).__name__
        raise InputError(f"--{flag.name}: {expected}, found {found}") from error
