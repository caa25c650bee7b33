"""The one exception for wrong input from outside: files, flags, configs, observations."""

import errno

FULL_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
)  # an OSError's number where no space is left, or none for this user


class InputError(ValueError):
    """Wrong input. The message is one line: what is wrong (file, field, index), what was expected, what was found.

    Launch scripts print the message alone and exit with status 2; a library user sees an ordinary exception.
    """
