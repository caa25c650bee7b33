"""What a checkpoint holds is read by items, each verified first."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from pi0_jax.checkpoints import manifest
from pi0_jax.checkpoints.description import MANIFEST, Description
from pi0_jax.checkpoints.folder import DESCRIPTION, FOLDER, locate
from pi0_jax.checkpoints.orbax_log import log_less
from pi0_jax.errors import InputError
from pi0_jax.models.paths import name_of


def damage(step_directory: epath.Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """Returns a line about a step's first damaged or missing file; None if the step is whole.

    Without a manifest only the description is checked. For `share` see manifest.damage.
    """
    if manifest.exists(step_directory):
        return manifest.damage(step_directory, share=share)
    try:
        _record(step_directory)
    except InputError as error:
        return str(error)
    return None


def read_description(step_directory: str | os.PathLike[str]) -> Description:
    """Reads a checkpoint's description; warns if there is no manifest.

    Raises:
        InputError: the file is missing or damaged, or `from_json` raises it.
    """
    path = epath.Path(step_directory)
    record = _record(path)
    if not manifest.exists(path):
        absl_logging.warning(
            "%s has no manifest, as before there were any: whether its files are whole is not verified",
            path,
        )
    return Description.from_json(record, str(path))


def _record(step: epath.Path) -> dict[str, Any]:
    """Reads the JSON of a description, verified."""
    check_whole(step, DESCRIPTION)
    file = step / DESCRIPTION / "metadata"
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = "nothing" if isinstance(error, FileNotFoundError) else error
        raise InputError(f"{file}: expected JSON, found {reason}") from error
    if not isinstance(record, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(record).__name__}")
    if MANIFEST in record and not manifest.exists(step):
        raise InputError(
            f"{step / manifest.FILE}: expected the digests of the checkpoint's files, found nothing"
        )
    return record


def check_whole(step_directory: epath.Path, *items: str) -> None:
    """Verifies these items' files; raises InputError that names the first damaged one.

    A step without a manifest is not verified.
    """
    if manifest.exists(step_directory) and (found := manifest.damage(step_directory, parts=items)):
        raise InputError(found)


def read_resumable(workdir: str | os.PathLike[str], step: int) -> Description:
    """Reads the description of a step, for a run that resumes from it.

    It raises InputError where no run can: a step that a conversion wrote has no optimizer.
    """
    directory = locate(workdir) / FOLDER / str(step)
    if not (directory / "optimizer").is_dir():
        raise InputError(
            f"{directory} has no optimizer, as what a conversion wrote: no run goes on from it; expected another workdir,"
            f" where config.initial_weights={os.fspath(workdir)} starts from its weights"
        )
    return read_description(directory)


def read_params(step_directory: str | os.PathLike[str], item: str, abstract: Any) -> Any:
    """Reads the item "ema" or "params" of a step, verified.

    Args:
        step_directory: the step's folder.
        item: "ema" or "params".
        abstract: a tree of shapes, dtypes and shardings, which the result gets.

    Raises:
        InputError: a file is damaged, or the leaves are not those of `abstract`.
    """
    path = epath.Path(step_directory)
    check_whole(path, item)
    check_leaves(path, item, abstract)
    with readable(path / item), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / item, abstract)


def read_part(step_directory: str | os.PathLike[str], item: str, abstract: Any) -> Any:
    """Reads only those leaves of a step's item that `abstract` has; see `read_params`."""
    path = epath.Path(step_directory)
    check_whole(path, item)
    check_leaves(path, item, abstract, part=True)
    how = ocp.checkpoint_utils.construct_restore_args(abstract)
    with readable(path / item), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            path / item,
            args=ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True),
        )


@contextlib.contextmanager
def readable(item: epath.Path) -> Iterator[None]:
    """Turns Orbax's errors, of a damaged checkpoint without a manifest, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{item}: expected arrays as they were saved, found: {brief(str(error))}"
        ) from error


def check_leaves(
    step_directory: epath.Path, item: str, abstract: Any, *, part: bool = False
) -> None:
    """Raises InputError if an item has not the leaves of `abstract`, as of another variant.

    The first leaves that are missing, extra (unless `part`) or of another shape are named.
    """
    if not (step_directory / item).is_dir():
        raise InputError(
            f"{step_directory}: expected {item}, found {', '.join(sorted(path.name for path in step_directory.iterdir()))}"
        )
    log_less()
    with readable(step_directory / item), ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(step_directory / item).item_metadata
    if metadata is None:  # Orbax does not tell what it could not read.
        raise InputError(
            f"{step_directory / item}: expected arrays as they were saved, found none that can be read"
        )
    stored = {
        _path(key): tuple(leaf.shape)
        for key, leaf in jax.tree_util.tree_leaves_with_path(dict(metadata))
    }
    wanted = {_path(key): leaf.shape for key, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    differing = [
        path
        for path in sorted(wanted if part else wanted | stored)
        if wanted.get(path) != stored.get(path)
    ]
    problems = [
        f"{path}: expected {wanted.get(path, 'nothing')}, found {stored.get(path, 'nothing')}"
        for path in differing
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        expected, found = name_of(wanted), name_of(stored)
        swapped = expected and found and expected != found
        other = f"model, a {found} in the place of a {expected}" if swapped else "model"
        raise InputError(
            f"{step_directory}/{item} is of another {other}: {'; '.join(problems[:3])}{more}"
        )


def _path(key: Any) -> str:
    """Returns a leaf's path."""
    return jax.tree_util.keystr(key, simple=True, separator="/")


def brief(message: str) -> str:
    """Returns the system's own words at the end of a storage's long message, or its beginning."""
    system = re.search(
        r"\[(?:OS error|Error code)[^\]]*\]|No space left on device|Disk quota exceeded|File too large",
        message,
    )
    return system.group() if system else " ".join(message.split())[:200]
