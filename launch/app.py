"""Runs a launch script's main: wrong input ends in one line and status 2, not in a traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from pi0_jax.errors import InputError


def run(main: Callable[[], int | None]) -> None:
    """Parses flags, runs `main`, exits with what it returns (None: 0)."""

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument: {argv[1]}")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # progress is the script's to show; --verbosity=0 shows the libraries' too
        try:
            return main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    app.run(guarded)
