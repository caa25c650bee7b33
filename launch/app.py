"""Runs the `main` of a launch script, and reports wrong input in one line.

Wrong input, also in flags, ends with status 2 and without a traceback.
"""

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
from pi0_jax.serve.freed_memory import keep_freed_memory

T = TypeVar("T")


def command(main: Callable[..., int | None], *, argument: str = "") -> Callable[[], None]:
    """Makes a script's `main` its entry point, for `python -m` and for a console script.

    A console script calls the entry point without arguments. It parses flags, runs `main` and exits
    with the status that `main` returns (None means 0). If Ctrl-C stops it, it says so and exits
    with 130, as shells do.

    Args:
        main: what the script does.
        argument: says what the one argument of the command line is, which `main` then gets.
            Without it the script takes none.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if argument and len(argv) < 2:
            raise app.UsageError(f"expected {argument}")
        if len(argv) > 1 + bool(argument):
            raise app.UsageError(f"unexpected argument: {argv[1 + bool(argument)]}")
        if not flags.FLAGS["verbosity"].present:
            # Scripts show their own progress. --verbosity=0 shows the libraries' progress too.
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
    """Lets --help of a console script say what it says after `python -m`.

    A console script has only imported `script`, so absl does not see it as the main module.
    """
    sys.modules["__main__"].__doc__ = script.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(script):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def needed(flag: flags.FlagHolder[T | None]) -> T:
    """Returns the flag's value.

    Raises:
        InputError: the flag is not given.
    """
    if flag.value is None:
        raise InputError(f"flag --{flag.name} is missing")
    return flag.value


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
    compilation.announce()
    compilation.keep(cache.value)


@contextlib.contextmanager
def optional_imports() -> Iterator[None]:
    """Ends the process with one line and status 2 if an import in the block needs a missing extra.

    An extra is a group of optional packages, such as pi0_jax[serve].
    """
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
        # ml_collections reports in this way a field that the config lacks.
        if not isinstance(missing, KeyError):
            raise
        sys.exit(_fail(f"the config has no field {'. '.join(missing.args[0].splitlines())}"))
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(_fail(_shortened(str(error))))


def _shortened(text: str) -> str:
    """Shortens what ml_collections says of a config file that raises.

    It holds the whole traceback, but its last line and its place are enough.
    """
    said, found, trace = text.partition("Traceback (most recent call last):")
    if not found:
        return text
    file, line = re.findall(r'File "([^"]+)", line (\d+)', trace)[-1]
    return f"{said} {trace.strip().splitlines()[-1]} ({file}, line {line})"


def _fail(error: object) -> int:
    for mistake in error.args if isinstance(error, InputError) else (error,):
        print("error:", " ".join(str(mistake).split()), file=sys.stderr)
    return 2
