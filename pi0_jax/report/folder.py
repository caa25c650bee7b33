"""A folder of pages, which appears whole and takes the place of an older one of its kind, but of nothing else."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pi0_jax.errors import InputError

PAGE = "index.html"


@contextlib.contextmanager
def new_pages(output: Path, mark: str) -> Iterator[Path]:
    """A folder to fill, PAGE with `mark` in it among the rest; it becomes `output` when the block ends without an error.

    Raises InputError: `output` is there and no empty folder or one whose PAGE has the mark; it cannot be written.
    """
    output = output.absolute()
    _check_replaceable(output, mark)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{output.name}.writing-", dir=output.parent))
    except OSError as error:
        raise InputError(f"{output}: expected a folder that can be written, found: {error.strerror}") from error
    try:
        fresh = workspace / "fresh"
        fresh.mkdir()
        yield fresh
        if output.exists():
            os.rename(output, workspace / "replaced")
        os.rename(fresh, output)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _check_replaceable(output: Path, mark: str) -> None:
    page = output / PAGE
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() and not (page.is_file() and mark in page.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{output}: expected a new folder for pages, or one that holds pages of this kind; found something else there")
