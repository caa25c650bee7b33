"""Opens the index of one dataset, and builds it first where there is none."""

from pathlib import Path

from pi0_jax.data.index.build import build_index
from pi0_jax.data.index.read import BadFrameError, Index, Reader
from pi0_jax.data.index.version import (
    INDEX_FILE,
    describe_difference,
    located,
    read_record,
    version_digest,
)
from pi0_jax.data.rows import Dataset
from pi0_jax.data.storage import AnyPath, Location
from pi0_jax.errors import InputError

__all__ = ["BadFrameError", "Index", "Reader", "build_or_open", "open_index"]


def build_or_open(
    row: Dataset,
    data_dir: AnyPath,
    index_dir: AnyPath | None = None,
    *,
    progress: bool = True,
    workers: int = 1,
    decode_all: bool = False,
    skip_bad_episodes: int = 0,
    check: bool = False,
) -> Index:
    """Opens the index of data_dir/<tfds_name>/<version>, and builds it first if there is none.

    It must be of these files and this row. It lies in index_dir/<row name>/<version>. Without
    index_dir it lies in pi0_index/ in the dataset's directory, or for a remote dataset in the cache
    (files.cache_folder). Any number of processes may call this at once.

    Args:
        data_dir: the folder of datasets, which may be a URL.
        index_dir: a local folder for indices, or None.
        progress: whether to show how far a build is.
        workers: processes that build; 1 builds in this one.
        decode_all: whether every image is decoded once. Otherwise every header is read, and one
            step of each 64th episode is decoded.
        skip_bad_episodes: how many episodes may be left out because something is wrong with them.
        check: whether the checksums of all columns of an existing index are verified. Otherwise
            only those of columns of at most 1 GB are.

    Raises:
        InputError: something is wrong with the dataset, an index cannot be written, or the existing
            index leaves out more, or has seen less decoded, than is asked for.
    """
    directory, root, version = located(row, data_dir, index_dir)
    path = root / version_digest(version)
    is_new = not (path / INDEX_FILE).is_file()
    if is_new:
        path = build_index(
            row,
            directory,
            root,
            progress=progress,
            workers=workers,
            decode_all=decode_all,
            skip_bad_episodes=skip_bad_episodes,
        )
    index = _opened(row, directory, path)
    if not is_new:
        index.verify(everything=check)
    if len(index.skipped) > skip_bad_episodes:
        raise InputError(
            f"dataset {row.name}: expected an index that leaves out at most {skip_bad_episodes} bad episodes, found {len(index.skipped)}"
            f" left out in {path}; allow as many with skip_bad_episodes, or delete the index and mend the files"
        )
    if decode_all and not index.decoded_all:
        raise InputError(
            f"dataset {row.name}: expected an index for which all images were decoded, found {path}; delete it to build one"
        )
    index.may_leave_out = skip_bad_episodes - len(index.skipped)
    return index


def open_index(row: Dataset, data_dir: AnyPath, index_dir: AnyPath | None = None) -> Index:
    """Opens an existing index. The arguments are those of `build_or_open`.

    Raises:
        InputError: there is none, or only one of other files or another row.
    """
    directory, root, version = located(row, data_dir, index_dir)
    path = root / version_digest(version)
    if not (path / INDEX_FILE).is_file():
        stale = sorted(root.glob(f"[!.]*/{INDEX_FILE}"), key=lambda file: file.stat().st_mtime)
        found = (
            f"a stale one: {describe_difference(version, read_record(stale[-1])['version'])}"
            if stale
            else "none"
        )
        raise InputError(
            f"dataset {row.name}: expected an index of {directory} in {root}, found {found}; build it with launch.index"
        )
    index = _opened(row, directory, path)
    index.verify(everything=False)
    return index


def _opened(row: Dataset, directory: Location, path: Path) -> Index:
    """Opens the index at `path` and checks that it is of the version that names its folder."""
    index = Index(row, directory, path)
    if index.digest != path.name:
        raise InputError(
            f"{path}: expected the index of the version that names its folder, found that of {index.digest}; delete it and build it again"
        )
    return index
