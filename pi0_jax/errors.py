"""Defines the exceptions for wrong input from outside: files, flags, configs, observations."""

import contextlib
import errno
from collections.abc import Iterator

# The numbers of an OSError where the disk is full, or this user's share of it.
FULL_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
)


class InputError(ValueError):
    """Is raised for wrong input.

    Each argument is one mistake in one line: what is wrong (file, field, index), what was expected,
    and what was found. Launch scripts print these lines alone and exit with status 2. A user of the
    library sees an ordinary exception.
    """

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.args)


class NotFiniteError(InputError):
    """Is raised where the numbers to hand out are NaN or infinite.

    The weights are then wrong, or the input is absurd.
    """


# Modules that only an extra of setup.py installs -> the name of that extra.
EXTRAS = {
    "tensorflow": "data",
    "tensorflow_datasets": "data",
    "av": "lerobot",
    "pyarrow": "lerobot",
    "aiohttp": "remote",
    "gcsfs": "remote",
    "s3fs": "remote",
    "msgpack": "serve",
    "websockets": "serve",
    "gymnasium": "sim",
    "mujoco": "sim",
    "torch": "torch",
    "transformers": "torch",
}


@contextlib.contextmanager
def optional_packages() -> Iterator[None]:
    """Turns the failed import of an optional package in the block into an InputError.

    The error says how to install the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise InputError(
            f"the package {package} is not installed: pip install 'pi0_jax[{EXTRAS[package]}]'"
        ) from error


@contextlib.contextmanager
def expecting(what: str, source: str) -> Iterator[None]:
    """Turns what a JSON record of another make raises in the block into an InputError.

    Args:
        what: what is expected, for the message.
        source: where the record was read, for the message.

    Raises:
        InputError: the block raised AttributeError, KeyError, TypeError or ValueError.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"nothing called {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{source}: expected {what}, found {found}") from error
