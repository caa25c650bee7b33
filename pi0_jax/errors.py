"""The one exception for wrong input from outside: files, flags, configs, observations."""

import errno

FULL_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
)  # an OSError's number where no space is left, or none for this user


class InputError(ValueError):
    """Wrong input. Each argument is one mistake in one line: what is wrong (file, field, index), what was expected, what was found.

    Launch scripts print the lines alone and exit with status 2; a library user sees an ordinary exception.
    """

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.args)
