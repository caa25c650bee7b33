"""Reads the key that a server asks of its clients.

The key is in a file, so that no list of processes and no shell's history shows it.
"""

from pathlib import Path

from pi0_jax.errors import InputError

HEADER = "Authorization"


def read(file: str | None) -> str | None:
    """Reads the key that the file of --api_key_file holds.

    Args:
        file: the file's path, or None where no key is asked for.

    Returns:
        One line of printable ASCII, or None without a file.

    Raises:
        InputError: the file cannot be read, or holds no key.
    """
    if file is None:
        return None
    try:
        key = Path(file).expanduser().read_text("utf-8").strip()
    # Path.expanduser raises a RuntimeError for a ~user that does not exist.
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(f"--api_key_file: {file}: {error}") from error
    if not (key.isascii() and key.isprintable() and key):
        raise InputError(
            f"--api_key_file: {file}: expected one line of printable ASCII, found {'something else' if key else 'nothing'}"
        )
    return key


def header(key: str) -> str:
    """Returns the header's value, in the form that openpi-client sends."""
    return f"Api-Key {key}"
