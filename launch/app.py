"""Runs a launch script's main: wrong input, in flags too, ends in one line and status 2, not in a traceback."""

import contextlib
import functools
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from absl import app, flags, logging

from pi0_jax import compilation
from pi0_jax.errors import InputError, optional_packages
from pi0_jax.freed_memory import keep_freed_memory

T = TypeVar("T")


def command(main: Callable[..., int | None], *, argument: str = "") -> Callable[[], None]:
    """Makes a script's `main` its entry point, for `python -m` and for a console script, which calls it without arguments.

    It parses flags, runs `main` and exits with what that returns (None: 0). With `argument`, which says what it is, `main`
    gets the one argument of the command line. Stopped with Ctrl-C it says so and exits with 130, as shells have it.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if argument and len(argv) < 2:
            raise app.UsageError(f"expected {argument}")
        if len(argv) > 1 + bool(argument):
            raise app.UsageError(f"unexpected argument: {argv[1 + bool(argument)]}")
        if not flags.FLAGS["verbosity"].present:
            # progress is the script's to show; --verbosity=0 shows the libraries' too
            logging.set_verbosity(logging.WARNING)
        keep_freed_memory()
        try:
            with optional_packages():
                return main(*argv[1:])
        except InputError as error:
            return _fail(error)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130

    @functools.wraps(main)
    def entry() -> None:
        _show_as_main(sys.modules[main.__module__])
        app.run(guarded, flags_parser=_parse)

    return entry


def _show_as_main(script: types.ModuleType) -> None:
    """Lets --help say of a console script, which has only imported `script`, what it says after `python -m`."""
    sys.modules["__main__"].__doc__ = script.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(script):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def needed(flag: flags.FlagHolder[T | None]) -> T:
    """The flag's value. Raises InputError where it is not given."""
    if flag.value is None:
        raise InputError(f"flag --{flag.name} is missing")
    return flag.value


def compilation_cache() -> flags.FlagHolder[str | None]:
    """Defines the flag of commands that compile, for `tell_and_keep`."""
    return flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs, to be trusted; empty: none. Not given:"
        " $JAX_COMPILATION_CACHE_DIR, or else pi0_jax/compiled in the user's cache folder.",
    )


def tell_and_keep(cache: flags.FlagHolder[str | None]) -> None:
    """From now on, programs that are compiled are announced and kept."""
    compilation.announce()
    compilation.keep(cache.value)


@contextlib.contextmanager
def optional_imports() -> Iterator[None]:
    """Ends the process with one line and status 2 if a script's import in the block needs an extra that is not installed."""
    try:
        with optional_packages():
            yield
    except InputError as error:
        sys.exit(_fail(error))


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:
        missing = error.args[0]
        # which is how ml_collections reports a field that the config lacks
        if not isinstance(missing, KeyError):
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
