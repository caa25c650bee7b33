"""The key that a server asks of its clients: in a file, so that no list of processes and no shell's history shows it."""

from pathlib import Path

from pi0_jax.errors import InputError

HEADER = "Authorization"


def read(file: str | None) -> str | None:
    """The key that the file of --api_key_file holds; no key without a file. Raises InputError where it holds none, or cannot be read."""
    if file is None:
        return None
    try:
        key = Path(file).expanduser().read_text("utf-8").strip()
    except (
        OSError,
        UnicodeDecodeError,
        RuntimeError,
    ) as error:  # the last of a ~user that is not there
        raise InputError(f"--api_key_file: {file}: {error}") from error
    if not (key.isascii() and key.isprintable() and key):
        raise InputError(
            f"--api_key_file: {file}: expected one line of printable ASCII, found {'something else' if key else 'nothing'}"
        )
    return key


def header(key: str) -> str:
    """The header's value, as openpi-client sends it."""
    return f"Api-Key {key}"
