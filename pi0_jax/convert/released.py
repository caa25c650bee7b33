"""A released π0 is opened as it is, for a policy: openpi's folder (JAX or PyTorch) or LeRobot's."""

import os
from typing import Any

from pi0_jax import checkpoints
from pi0_jax.checkpoints import Description
from pi0_jax.convert import openpi, ours, shards
from pi0_jax.convert.folder import Folder
from pi0_jax.convert.formats import Options, prepared
from pi0_jax.errors import InputError
from pi0_jax.models.paths import unflatten
from pi0_jax.models.sampling import storage_dtype
from pi0_jax.policy_config import Dtype


def recognise(directory: str | os.PathLike[str]) -> bool:
    """Returns whether a folder holds a π0 of another format and no checkpoint of ours."""
    if not checkpoints.locate(directory).is_dir():
        return False
    folder = Folder(directory)
    is_other = openpi.recognise_jax(folder) or shards.present(folder)
    return is_other and not ours.recognise(folder)


def read(
    directory: str | os.PathLike[str], options: Options, dtype: Dtype | None
) -> tuple[Description, Any, list[str]]:
    """Reads what a policy needs, a leaf at a time; nothing is written.

    Args:
        directory: the folder, or a gs:// or s3:// URL.
        options: the robot, its record and the tokenizer, where the files lack them.
        dtype: the dtype in which the policy computes; None takes the default.

    Returns:
        The description that a checkpoint of ours would have, the published tree on the host, each
        leaf in the dtype in which a policy keeps it, and notes on what was assumed.

    Raises:
        InputError: the folder holds a checkpoint of ours, or no π0; or the robot, its record or the
            tokenizer is missing.
    """
    source, notes = prepared(directory, ours.NAME, options)
    if source.format == ours.NAME:
        raise InputError(
            f"{source.path}: a checkpoint of ours has its robots and tokenizer; expected none of"
            " robot, embodiment, tokenizer and sizes"
        )
    description = ours.describe(source).computing_in(dtype)
    kept = {
        path: source.read(path).astype(storage_dtype(path, description.policy.dtype), copy=False)
        for path in source.leaves
    }
    return description, unflatten(kept), notes
