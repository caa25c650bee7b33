"""The one exception for wrong input from outside: files, flags, configs, observations."""

import contextlib
import errno
from collections.abc import Iterator

# an OSError's number where no space is left, or none for this user
FULL_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
)


class InputError(ValueError):
    """Wrong input. Each argument is one mistake in one line: what is wrong (file, field, index), what was expected, what was found.

    Launch scripts print the lines alone and exit with status 2; a library user sees an ordinary exception.
    """

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.args)


class NotFiniteError(InputError):
    """The numbers that would be handed out are NaN or infinite: the weights are wrong, or the input is absurd."""


# Modules that only an extra of setup.py installs, and that extra.
EXTRAS = {
    "tensorflow": "data",
    "tensorflow_datasets": "data",
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
    """Turns an import in the block that lacks an optional package into an InputError that says how to install it."""
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
    """What a JSON record of another make raises in the block, where it is read, becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"nothing called {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{source}: expected {what}, found {found}") from error
