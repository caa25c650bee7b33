"""A run's checkpoints lie in a folder, and messages say what a folder is that holds none."""

import os
import re

import orbax.checkpoint as ocp
from etils import epath

from pi0_jax.errors import InputError

FOLDER = "checkpoints"
DESCRIPTION = "description"
ITEMS = ("params", "ema", "optimizer", "lora", DESCRIPTION, "metrics")
_REMOTE = ("gs://", "s3://")


def locate(directory: str | os.PathLike[str]) -> epath.Path:
    """Returns a local folder, made absolute, or the place that a URL names.

    Raises:
        InputError: the URL cannot hold checkpoints.
    """
    text = os.fspath(directory)
    if "://" not in text:
        return epath.Path(text).absolute()  # A URL would become a local folder by this.
    if not text.startswith(_REMOTE):
        raise InputError(
            f"{text}: expected a local folder or a URL that begins with {' or '.join(_REMOTE)}"
        )
    return epath.Path(text)


def steps(workdir: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of a run that have a checkpoint, in ascending order.

    A save that has not ended is none.
    """
    root = locate(workdir) / FOLDER
    return sorted(ocp.utils.checkpoint_steps(root)) if root.is_dir() else []


def latest_step(workdir: str | os.PathLike[str]) -> int | None:
    """Returns the step of the run's latest checkpoint; None where there is none."""
    return max(steps(workdir), default=None)


def find(directory: str | os.PathLike[str]) -> epath.Path:
    """Returns the step folder that a directory names: itself, or the latest one of a run.

    Raises:
        InputError: there is no checkpoint of ours. The message says what is there instead, and what
            to do.
    """
    place = locate(directory)
    if is_ours(_names(place)):
        return place
    root = place / FOLDER if (place / FOLDER).is_dir() else place
    found = ocp.utils.checkpoint_steps(root) if root.is_dir() else []
    # Runs of openpi and LeRobot have numbered folders too.
    if found and is_ours(_names(step := root / str(max(found)))):
        return step
    raise InputError(
        f"no checkpoint in {place}: expected {FOLDER}/<step>/ with {DESCRIPTION} and ema, found {_found(place)}"
    )


def is_ours(names: frozenset[str]) -> bool:
    """Returns whether a folder with these names is a step of ours, damaged or not."""
    return DESCRIPTION in names or ("manifest" in names and bool(names & set(ITEMS)))


def _found(directory: epath.Path) -> str:
    """Says what a folder is that is no checkpoint of ours, and what to do with it."""
    if not directory.exists():
        return "nothing there"
    if not directory.is_dir():
        return "a file; name the folder of the run or of one step"
    names = _names(directory)
    if not names:
        return "an empty folder"
    converted = "a checkpoint of {}; launch.convert makes one of ours of it"
    if other := _other_format(directory, names):
        return converted.format(other)
    for name in sorted(names, key=lambda name: (not name.isdigit(), name)):
        inner = _names(directory / name)
        if FOLDER in inner and any(step.isdigit() for step in _names(directory / name / FOLDER)):
            return f"a folder of runs; name one of them, such as {directory / name}"
        if DESCRIPTION in inner and not name.isdigit():
            return f"a folder above a step; name {directory / name}"
        if other := _other_format(directory / name, inner):
            return converted.format(f"{other}, in {name}/")
    above = next((place for place in directory.parents if (place / DESCRIPTION).is_dir()), None)
    if above is not None:
        return f"a part of the step {above}; name that"
    shown = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
    return f"a folder with {shown}"


def _other_format(folder: epath.Path, names: frozenset[str]) -> str | None:
    """Returns the format's name if a folder holds a checkpoint of another format."""
    if any(re.fullmatch(r"model.*\.safetensors", name) for name in names):
        kept = folder / "config.json"
        lerobot = kept.is_file() and b'"input_features"' in kept.read_bytes()
        return "LeRobot" if lerobot else "openpi in PyTorch, or of another safetensors format"
    if "_METADATA" in names and not (folder.parent / DESCRIPTION).is_dir():
        return "openpi (the params of one step)"
    if "params" in names and "_METADATA" in _names(folder / "params"):
        return "openpi"
    return None


def _names(folder: epath.Path) -> frozenset[str]:
    """Returns the names in a folder; none if it is no folder."""
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
