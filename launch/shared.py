"""Parses the command line, and defines flags that several scripts have."""

import re
import traceback
from collections.abc import Sequence
from typing import TypeVar

from absl import flags

from pi0_jax.errors import InputError

# --help then lists a flag as one of the script that asks for it.
flags.disclaim_key_flags()

T = TypeVar("T")


def parse(argv: Sequence[str]) -> list[str]:
    """Parses a command line; raises InputError if a flag or a config is wrong."""
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:
        missing = error.args[0]
        # ml_collections reports in this way a field that the config lacks.
        if not isinstance(missing, KeyError):
            raise
        lines = ". ".join(missing.args[0].splitlines())
        raise InputError(f"the config has no field {lines}") from error
    except NameError as error:
        # The draft of a config (launch.import_lerobot) has ASK where a person must say.
        if error.name != "ASK":
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        raise InputError(
            f"{where}: expected an answer in the place of ASK: {place.line}"
        ) from error
    except (flags.Error, ValueError, OSError) as error:
        text, found, trace = str(error).partition("Traceback (most recent call last):")
        if found:  # a config file raises: the last line of its traceback and its place are enough
            file, line = re.findall(r'File "([^"]+)", line (\d+)', trace)[-1]
            text = f"{text} {trace.strip().splitlines()[-1]} ({file}, line {line})"
        raise InputError(text) from error


def needed(flag: flags.FlagHolder[T | None]) -> T:
    """Returns the flag's value; raises InputError if it is not given."""
    if flag.value is None:
        raise InputError(f"flag --{flag.name} is missing")
    return flag.value


def matched(flag: flags.FlagHolder, pattern: str, expected: str) -> list[tuple[str, ...]]:
    """Returns what the pattern's groups match in each entry of a list of at least one.

    Raises:
        InputError: an entry does not match.
    """
    found = [re.fullmatch(pattern, entry) for entry in flag.value or [""]]
    if not all(found):
        raise InputError(f"--{flag.name}: expected {expected}, found {','.join(flag.value)}")
    return [match.groups() for match in found if match]


def compilation_cache() -> flags.FlagHolder[str | None]:
    """Defines the flag of commands that compile; `tell_and_keep` takes it."""
    return flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs, to be trusted; empty: none. Not given:"
        " $JAX_COMPILATION_CACHE_DIR, or else pi0_jax/compiled in the user's cache folder.",
    )


def tell_and_keep(cache: flags.FlagHolder[str | None]) -> None:
    """Announces and keeps all programs that are compiled from now on."""
    from pi0_jax import compilation  # which needs JAX: a simulator's environment has none

    compilation.announce()
    compilation.keep(cache.value)
