"""Says where this package keeps its own files, and makes a file appear whole."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """Returns the user's folder for what can be made again.

    It is pi0_jax in $XDG_CACHE_HOME, or in ~/.cache.
    """
    given = os.environ["XDG_CACHE_HOME"] if "XDG_CACHE_HOME" in os.environ else ""
    return (Path(given) if given else Path.home() / ".cache") / "pi0_jax"


def new_path(folder: Path, prefix: str) -> Path:
    """Returns a path in `folder` that does not exist: `prefix` and random letters.

    A file or folder that is created there has the permissions that the user's umask leaves. Those
    that the module tempfile creates can be read by their user alone.
    """
    return folder / f"{prefix}{secrets.token_hex(8)}"


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Gives a path to write to. Its file replaces `file` if the block ends without an error."""
    temporary = new_path(file.parent, f".{file.name}-")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
