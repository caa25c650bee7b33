"""A checkpoint has a digest of every file.

The manifest is written before the checkpoint's folder gets its name. It is verified where a file is
read.

    STEP/manifest    1c291ca3                             CRC32C of all that follows
                     0a8f33d1 18163 ema/_METADATA         CRC32C, bytes and path of one file
                     ...

The two files that Orbax writes at the very end, _CHECKPOINT_METADATA and commit_success.txt of the
step itself, are left out: nothing is taken from them here.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import google_crc32c
from etils import epath

FILE = "manifest"
_OF_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 20  # bytes; so few stay in a core's cache between the copy and the sum
_THREADS = 8


class Digest(NamedTuple):
    """Holds a file's CRC32C and its size in bytes."""

    crc: int
    size: int

    def __str__(self) -> str:
        return f"{self.size:,} bytes with CRC32C {self.crc:08x}"


def write(folder: epath.Path) -> None:
    """Writes the manifest of all files that a folder has; raises OSError as a write does."""
    paths = sorted(path for path in _files(folder, "") if path not in (FILE, *_OF_ORBAX))
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(lambda path: _digest(folder / path), paths)
    lines = "".join(
        f"{digest.crc:08x} {digest.size} {path}\n"
        for digest, path in zip(digests, paths, strict=True)
    ).encode()
    (folder / FILE).write_bytes(f"{google_crc32c.value(lines):08x}\n".encode() + lines)


def exists(folder: epath.Path) -> bool:
    """Returns whether the folder has a manifest.

    Checkpoints from before there were manifests have none.
    """
    return (folder / FILE).exists()


def damage(
    folder: epath.Path, parts: Sequence[str] | None = None, share: tuple[int, int] = (0, 1)
) -> str | None:
    """Says which file of a folder with a manifest is not as it was written.

    Args:
        folder: a step's folder.
        parts: the names in `folder` whose files are verified; None verifies all.
        share: (first, count). Only each count-th file is verified, from number first on. So of
            `count` processes each verifies its own.

    Returns:
        The first such file, with what was expected and what was found; None where all are whole.
    """
    place = folder / FILE
    head, _, lines = place.read_bytes().partition(b"\n")
    if head != f"{google_crc32c.value(lines):08x}".encode():
        return f"{place}: expected the digests that were written there, found others: the file is damaged"
    wanted = {}
    for line in lines.decode().splitlines():
        crc, size, path = line.split(" ", 2)
        if parts is None or path.partition("/")[0] in parts:
            wanted[path] = Digest(int(crc, 16), int(size))
    mine = list(wanted)[share[0] :: share[1]]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda path: _difference(folder / path, wanted[path]), mine)
        return next((text for text in found if text), None)


def _difference(file: epath.Path, wanted: Digest) -> str | None:
    """Says how a file differs from its digest; None if it does not."""
    try:
        size = file.stat().length
        found = _digest(file) if size == wanted.size else None
    except OSError as error:
        reason = "nothing" if isinstance(error, FileNotFoundError) else error.strerror or error
        return f"{file}: expected {wanted.size:,} bytes, found {reason}"
    if found is None:
        return f"{file}: expected {wanted.size:,} bytes, found {size:,}"
    return None if found == wanted else f"{file}: expected {wanted}, found {found.crc:08x}"


def _digest(file: epath.Path) -> Digest:
    """Computes the digest of a file."""
    crc = size = 0
    # A buffer would copy the bytes once more.
    local = "://" not in os.fspath(file)
    with open(file, "rb", buffering=0) if local else file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            crc = google_crc32c.extend(crc, chunk)
            size += len(chunk)
    return Digest(crc, size)


def _files(folder: epath.Path, prefix: str) -> Iterator[str]:
    """Yields the paths of all files below a folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"
