"""Runs a launch script's main: wrong input, in flags too, ends in one line and status 2, not in a traceback."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from pi0_jax.errors import InputError
from pi0_jax.freed_memory import keep_freed_memory


def run(main: Callable[..., int | None], *, command: str = "") -> None:
    """Parses flags, runs `main`, exits with what it returns (None: 0). With `command`, says what it is, main gets the one argument.

    Stopped with Ctrl-C it says so and exits with 130, as shells have it.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if command and len(argv) < 2:
            raise app.UsageError(f"expected {command}")
        if len(argv) > 1 + bool(command):
            raise app.UsageError(f"unexpected argument: {argv[1 + bool(command)]}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(
                logging.WARNING
            )  # progress is the script's to show; --verbosity=0 shows the libraries' too
        keep_freed_memory()
        try:
            return main(*argv[1:])
        except InputError as error:
            return _fail(error)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130

    app.run(guarded, flags_parser=_parse)


def config_mapping(flag: flags.FlagHolder) -> dict[str, Any]:
    """The fields of a flag that names a config file. Raises InputError for a file that is not there or holds no config."""
    try:
        return flag.value.to_dict()
    except OSError as error:  # ml_collections says so on access
        raise InputError(str(error.__cause__ or error)) from error
    except AttributeError as error:
        found = type(flag.value).__name__
        raise InputError(
            f"--{flag.name}: expected a file whose get_config() returns a ConfigDict, found {found}"
        ) from error


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:
        missing = error.args[0]
        if not isinstance(
            missing, KeyError
        ):  # which is how ml_collections reports a field that the config lacks
            raise
        sys.exit(_fail(f"the config has no field {'. '.join(missing.args[0].splitlines())}"))
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(_fail(_shortened(str(error))))


def _shortened(text: str) -> str:
    """What ml_collections says of a config file that raises holds the traceback: its last line and place are enough."""
    said, found, trace = text.partition("Traceback (most recent call last):")
    if not found:
        return text
    file, line = re.findall(r'File "([^"]+)", line (\d+)', trace)[-1]
    return f"{said} {trace.strip().splitlines()[-1]} ({file}, line {line})"


def _fail(error: object) -> int:
    for mistake in error.args if isinstance(error, InputError) else (error,):
        print("error:", " ".join(str(mistake).split()), file=sys.stderr)
    return 2
