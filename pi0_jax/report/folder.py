"""Writes pages that appear only when they are whole, in a folder that may hold other things."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pi0_jax.errors import InputError
from pi0_jax.files import new_path

PAGE = "index.html"


@contextlib.contextmanager
def new_pages(output: Path, mark: str) -> Iterator[Path]:
    """Gives a folder to fill with pages, and moves its files to `output` at the end.

    The files are moved when the block ends without an error, and PAGE comes last. Files that are in
    `output` already stay, unless they have the name of a new file.

    Args:
        output: where the pages go. It is made if need be.
        mark: text that the new PAGE holds, and that an older PAGE must hold to be replaced.

    Raises:
        InputError: the PAGE that is there lacks the mark, or `output` cannot be written.
    """
    page = output / PAGE
    if page.exists() and mark not in page.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{page}: expected no page, or an older one of this kind, found another")
    new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        workspace = new_path(output, ".writing-")
        workspace.mkdir()
    except OSError as error:
        raise InputError(
            f"{output}: expected a folder that can be written, found: {error.strerror}"
        ) from error
    try:
        yield workspace
        for file in sorted(workspace.rglob("*"), key=lambda file: file == workspace / PAGE):
            place = output / file.relative_to(workspace)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(file, place)
    finally:
        shutil.rmtree(workspace)
        if new and not any(output.iterdir()):
            output.rmdir()
