"""Runs the `main` of a launch script, and reports wrong input in one line.

Wrong input, also in flags, ends with status 2 and without a traceback.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import app, flags, logging

from pi0_jax.errors import InputError, optional_packages
from pi0_jax.freed_memory import keep_freed_memory

from . import shared


def command(main: Callable[..., int | None], *, argument: str = "") -> Callable[[], None]:
    """Makes a script's `main` its entry point, for `python -m` and for a console script.

    The entry point parses flags, runs `main` and exits with the status that it returns (None is
    0), or with 130 after Ctrl-C, as shells do. `argument` says what the one argument of the
    command line is, which `main` then gets. Without it the script takes none.
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
            with one_line_errors():
                return main(*argv[1:])
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130

    @functools.wraps(main)
    def entry() -> None:
        # A console script has only imported the module, so absl does not see it as the main one,
        # and --help would not say what it says after `python -m`.
        script = sys.modules[main.__module__]
        sys.modules["__main__"].__doc__ = script.__doc__
        for flag in flags.FLAGS.get_key_flags_for_module(script):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
        app.run(guarded, flags_parser=one_line_errors()(shared.parse))

    return entry


def refuse_given(unread: Mapping[str, str]) -> None:
    """Raises InputError for flags that were given; `unread` says with what each is expected."""
    if given := [name for name in unread if flags.FLAGS[name].present]:
        raise InputError(*[f"--{name}: expected with {unread[name]}" for name in given])


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with status 2 and a line for each mistake, if the block meets wrong input.

    A package that is missed counts as such; the line names the extra that has it: pi0_jax[serve].
    """
    try:
        with optional_packages():
            yield
    except InputError as error:
        for mistake in error.args:
            print("error:", " ".join(str(mistake).split()), file=sys.stderr)
        sys.exit(2)
