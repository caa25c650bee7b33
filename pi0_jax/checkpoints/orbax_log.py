"""Orbax and TensorStore log less: an error that is raised is told once, in our own line."""

import logging
import re
import sys
from typing import Any

from absl import logging as absl_logging

# What Orbax logs of files that nobody here reads for what they hold, or before our own line.
_NOT_NEEDED = (
    "Metadata file does not exist",
    "Failed to json parse Metadata file",
    "Failed to read Metadata file",
    "Failed to get item metadata",
    "Provided metadata contains unknown key",
)
STORAGE_ERROR = re.compile(r"[A-Z]+(_[A-Z]+)*: ")  # how TensorStore's messages begin


class _Needless(logging.Filter):
    """Drops what Orbax, and asyncio for Orbax's other writes, log needlessly.

    That is tracebacks of an error that is also raised; and complaints that an item, read by itself,
    lacks a file of a step's folder, or that this file, of which nothing is used, is damaged.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is kept."""
        logged_by_orbax = "orbax" in record.pathname
        if logged_by_orbax and str(record.msg).startswith(_NOT_NEEDED):
            return False
        error = record.exc_info[1] if record.exc_info else None
        of_a_write = record.name == "asyncio" and (
            isinstance(error, OSError) or STORAGE_ERROR.match(str(error))
        )
        return not (error and (logged_by_orbax or of_a_write))


_NEEDLESS = _Needless()


def _show_unraisable(unraisable: Any) -> None:
    """Shows unraisable errors as usual, but not TensorStore's after it could not save or restore."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def log_less(*, writes: bool = False) -> None:
    """Installs the filter; with `writes` also for asyncio, where a server's trouble is logged."""
    absl_logging.get_absl_logger().addFilter(_NEEDLESS)
    if sys.unraisablehook is sys.__unraisablehook__:  # nobody else, such as pytest, has set one
        sys.unraisablehook = _show_unraisable
    if writes:
        logging.getLogger("asyncio").addFilter(_NEEDLESS)
