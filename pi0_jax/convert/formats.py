"""The format of a checkpoint is found here; it is opened, and written as another.

`open_checkpoint(path)` finds the format from the files and reads no array yet. `convert(path,
output, to, options)` streams: one layer, or one leaf without layers, at a time. The output appears
when it is whole.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pi0_jax import checkpoints
from pi0_jax.checkpoints import Description
from pi0_jax.convert import lerobot, openpi, ours, paligemma, safetensors_files, tree
from pi0_jax.convert.folder import Folder, check_absent, is_file, new_folder
from pi0_jax.convert.metadata import (
    FILE,
    PUBLISHED_HORIZON,
    PUBLISHED_MAX_TOKENS,
    PUBLISHED_PI05_MAX_TOKENS,
    Metadata,
    RobotRecord,
    choose_robot,
    find_embodiment,
    without_padding,
)
from pi0_jax.convert.source import Source, Tensors, cast
from pi0_jax.data import storage
from pi0_jax.data.storage import AnyPath
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.models.paths import unflatten
from pi0_jax.models.sampling import storage_dtype
from pi0_jax.policy_config import Dtype, PolicyConfig
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.tokenizer import Tokenizer

# Format -> the file or folder that is written last, without which nobody recognises the format; and
# the things for which the format's own files have no room.
OUTPUTS = {
    ours.NAME: ("checkpoints", ""),
    openpi.JAX: ("params", "minimum and maximum, embodiment, horizon, tokenizer, config"),
    openpi.PYTORCH: ("config.json", "minimum and maximum, embodiment, sizes of heads, tokenizer, config"),
    lerobot.NAME: ("config.json", "float64 statistics, units, control rate, sizes of heads, tokenizer, config"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Holds what the user says about a checkpoint, where its files may not say it.

    Attributes:
        robot: whose statistics are taken, where there are several; None takes all.
        embodiment: the record of that robot, where its statistics come without one: a known
            record's name, a JSON file with one, or the record itself.
        tokenizer: path or URL of a SentencePiece model; "small" is the one that ships.
        sizes: sizes that no tensor shows: horizon, max_tokens and the names of convert/tree.py.
        weights: of our own checkpoints, "ema" (the moving average) or "params".
        merge_lora: merges LoRA's leaves, scaled by this (alpha / rank).
        weights_only: converts without statistics.
        dtype: NumPy's dtype to write; None keeps each leaf's.
        seed: keys the leaves that a PaliGemma lacks.
        state_in_prompt: of a π0.5, whether its prompts tell the state; None takes what its files
            say, or else true, as published for all robots but LIBERO's.
    """

    robot: str | None = None
    embodiment: str | Embodiment | None = None
    tokenizer: str | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weights: str = "ema"
    merge_lora: float | None = None
    weights_only: bool = False
    dtype: np.dtype | None = None
    seed: int = 0
    state_in_prompt: bool | None = None


DEFAULTS = Options()


def open_checkpoint(path: AnyPath, options: Options = DEFAULTS) -> Source:
    """Opens a checkpoint of any format that we read, and reads no array yet.

    Args:
        path: a folder, an npz or a safetensors file; a URL too.
        options: what its files do not say.

    Returns:
        The parameters under our names, which are read when they are asked for.

    Raises:
        InputError: there is no format or several; a file is missing or truncated; tensors are
            missing, unknown or contradict each other.
    """
    source = _opened(path, options)
    if options.merge_lora is not None and source.format != openpi.JAX:
        raise InputError(
            f"{source.path}: --merge_lora: expected LoRA leaves of openpi's JAX checkpoints, found {source.format}"
        )
    return source


def _opened(path: AnyPath, options: Options) -> Source:
    """Opens a checkpoint by what its files are called."""
    given = _letters(options.sizes)
    place = storage.locate(path)
    if is_file(place):
        if place.name.endswith(".npz"):
            return paligemma.read_npz(place, given)
        if place.name.endswith(".safetensors"):
            return _read_torch(None, str(place), safetensors_files.read_file(place), given)
        raise InputError(f"{place}: expected a directory, an npz or a safetensors file")
    folder = Folder(place)
    if ours.recognise(folder):
        return ours.read(folder, options.weights)
    orbax, torch = openpi.recognise_jax(folder), safetensors_files.are_in(folder)
    if orbax and torch:
        raise InputError(
            f"{folder}: expected a checkpoint of one format, found an Orbax checkpoint and safetensors"
        )
    if torch:
        return _read_torch(folder, str(folder), safetensors_files.read_folder(folder), given)
    if not orbax:
        found = ", ".join(sorted(folder.names)[:5]) or "nothing"
        raise InputError(f"{folder}: expected a checkpoint of a known format, found {found}")
    arrays = openpi.arrays(folder)
    if options.merge_lora is not None:
        if not openpi.lora_names(arrays):
            raise InputError(f"{folder}: --merge_lora: expected LoRA leaves to merge, found none")
        arrays = openpi.merged(arrays, options.merge_lora, str(folder))
    _refuse_lora(arrays, str(folder))
    return openpi.read_jax(folder, arrays)


def _read_torch(folder: Folder | None, path: str, tensors: Tensors, given: tree.Sizes) -> Source:
    """Opens safetensors of the format that their tensors' names show."""
    _refuse_lora(tensors, path)
    if any(name.startswith(lerobot.FIRST_NAME) for name in tensors):
        return lerobot.read(folder, path, tensors, given)
    if any(name.startswith(openpi.FIRST_NAME) for name in tensors):
        return openpi.read_torch(folder, path, tensors, given)
    if paligemma.is_hugging_face(tensors):
        return paligemma.read_hugging_face(folder, path, tensors, given)
    found = ", ".join(sorted(tensors)[:3]) or "none"
    raise InputError(f"{path}: expected the tensors of a π0 or a PaliGemma, found {found}")


def _refuse_lora(tensors: Tensors, path: str) -> None:
    """Raises InputError for LoRA leaves that are not merged."""
    if names := openpi.lora_names(tensors):
        raise InputError(
            f"{path}: {names[0]}: LoRA leaves; those of openpi's JAX checkpoints are merged with --merge_lora=ALPHA/RANK"
        )


class Report(NamedTuple):
    """Holds what a conversion wrote, and what the user should know of it."""

    source: Source  # what was written
    notes: list[str]  # what was assumed, and what the format has no room for

    @property
    def parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.source.leaves.values())


def convert(path: AnyPath, output: AnyPath, to: str, options: Options = DEFAULTS) -> Report:
    """Writes a checkpoint as another format, one layer at a time.

    Args:
        path: a checkpoint of any format that we read: a folder, an npz or a safetensors file; a
            URL too.
        output: the new folder, which appears when it is whole; a gs:// or s3:// URL too.
        to: "ours", "openpi_jax", "openpi_pytorch" or "lerobot".
        options: what the files do not say.

    Returns:
        What was written, and notes on what was assumed or left out.

    Raises:
        InputError: the checkpoint cannot be read; the output exists; the format is unknown, or
            wants statistics, an embodiment or a tokenizer that nobody gave, or has no room for
            robots' tokens.
    """
    if to not in OUTPUTS:
        raise InputError(f"to: expected one of {', '.join(OUTPUTS)}, found {to!r}")
    check_absent(output)
    source, notes = prepared(path, to, options)
    if to != ours.NAME and "R" in source.sizes:
        raise InputError(
            f"{source.path}: expected no tokens of robots (config.embodiment_tokens), for which {to}"
            f" has no room, found {source.sizes['R']}"
        )
    notes += [
        f"{name} differs from the embedding that it is tied to, and is left out"
        for name in source.differing_copies()
    ]
    last, elsewhere = OUTPUTS[to]
    with new_folder(output, last) as folder:
        notes += _WRITERS[to](source, folder)
        if to != ours.NAME:
            record = dataclasses.replace(source.metadata, sizes=source.sizes).to_json()
            normalize.write_json(folder / FILE, record)
            notes.append(f"beside, in {FILE}, what {to} has no room for: {elsewhere}")
    return Report(source, notes)


_WRITERS: Mapping[str, Callable[[Source, Path], list[str]]] = {
    ours.NAME: ours.write,
    openpi.JAX: openpi.write_jax,
    openpi.PYTORCH: openpi.write_torch,
    lerobot.NAME: lerobot.write,
}


def prepared(path: AnyPath, to: str, options: Options) -> tuple[Source, list[str]]:
    """Opens a checkpoint as it will be written to the format `to`; returns notes, too.

    The source has every leaf, the wanted dtype and complete metadata.

    Raises:
        InputError: as in `open_checkpoint`; or statistics are missing.
    """
    source = open_checkpoint(path, options)
    initial = source.format in (paligemma.BIG_VISION, paligemma.HUGGING_FACE)
    if initial:
        source = paligemma.with_fresh_leaves(source, _letters(options.sizes), options.seed)
    metadata, notes = _completed(source, options)
    without = initial or options.weights_only
    if not metadata.robots and to in (openpi.JAX, openpi.PYTORCH) and not without:
        raise InputError(
            f"{source.path}: expected a robot's statistics, found none; --weights_only converts without them"
        )
    if not metadata.robots:
        notes.append("no statistics: weights alone, to start training from")
    source = cast(dataclasses.replace(source, metadata=metadata), options.dtype)
    return source, [*source.notes, *notes]


def _completed(opened: Source, options: Options) -> tuple[Metadata, list[str]]:
    """Completes the metadata by what the user says or what is published; also returns notes."""
    metadata, source, pi05 = opened.metadata, opened.path, tree.is_pi05(opened.sizes)
    notes: list[str] = []

    def size(name: str, known: int | None, published: int) -> int:
        """Returns a size that no tensor shows: as known, as the user gives it, or as published."""
        given = options.sizes.get(name)
        if given is not None and known is not None and known != given:
            raise InputError(f"{source}: {name} is {known}; found --sizes={name}={given}")
        if known is not None:
            return known
        if given is None:
            notes.append(
                f"{name} shows in no file of this format: {published}, as published (--sizes={name}=...)"
            )
        return published if given is None else given

    horizon = size("horizon", metadata.horizon, PUBLISHED_HORIZON)
    longest = PUBLISHED_PI05_MAX_TOKENS if pi05 else PUBLISHED_MAX_TOKENS
    max_tokens = size("max_tokens", metadata.max_tokens, longest)
    mode = metadata.normalization or ("quantile" if pi05 else "zscore")  # as published
    policy, told = metadata.policy, options.state_in_prompt
    if policy is None and pi05:
        model = tree.model_config(opened.sizes, horizon=horizon, max_tokens=max_tokens)
        if told is not False and mode != "quantile":
            raise InputError(
                f"{source}: normalization is {mode!r}; expected 'quantile': the prompt's bins go from"
                " -1 to 1 (--nostate_in_prompt: it tells no state)"
            )
        policy = PolicyConfig(
            variant=ours.variant(model), normalization=mode, state_in_prompt=told is not False,
            action_dim=model.action_dim, horizon=horizon, max_tokens=max_tokens,
        )  # fmt: skip
        if told is None and opened.format != lerobot.NAME:
            notes.append(
                "state_in_prompt shows in no file of this format: the prompt tells the state, as published (--nostate_in_prompt)"
            )
    elif told not in (None, policy is not None and policy.state_in_prompt):
        raise InputError(
            f"{source}: state_in_prompt: expected what the checkpoint says, {not told}, found {told}"
        )
    robots = {} if options.weights_only else dict(metadata.robots)
    if robots and (options.robot is not None or options.embodiment is not None):
        name, record = choose_robot(metadata, options.robot, source)
        if options.embodiment is not None:
            record = _of_embodiment(record, options.embodiment, f"{source}: {name}")
        if left := [other for other in robots if other != name]:
            notes.append(f"left out: the statistics of {', '.join(left)}")
        robots = {name: record}
    robots = {name: without_padding(record, f"{source}: {name}") for name, record in robots.items()}
    tokenizer = metadata.tokenizer
    if options.tokenizer is not None:
        tokenizer = Tokenizer.open(options.tokenizer).model
    completed = Metadata(
        robots, horizon, max_tokens, mode, tokenizer, policy, metadata.training, metadata.position, metadata.sizes
    )  # fmt: skip
    return completed, notes


def _of_embodiment(record: RobotRecord, name: str | Embodiment, where: str) -> RobotRecord:
    """Returns the robot with the record that the user names.

    Its deltas must be those that the checkpoint says, where it says them.
    """
    given, known = find_embodiment(name), record.embodiment
    if known is not None:
        found, expected = map(_deltas, (given, known))
        if found != expected:
            raise InputError(
                f"{where}: --embodiment={given.name}: actions learnt relative to the state: expected"
                f" {expected} as the checkpoint says, found {found}"
            )
    return record._replace(embodiment=given)


def _deltas(embodiment: Embodiment) -> str:
    """Says which actions are learnt relative to which states."""
    places = enumerate(embodiment.delta_states)
    texts = (
        f"{i}" if place == i else f"{i} to state {place}"
        for i, place in places
        if place is not None
    )
    return ", ".join(texts) or "none"


def _letters(sizes: Mapping[str, int]) -> dict[str, int]:
    """Turns the names of the user's sizes into the letters of tree.py; refuses unknown ones."""
    known = (*tree.LETTERS, "horizon", "max_tokens")
    for name, size in sizes.items():
        if name not in known:
            raise InputError(f"--sizes: {name} is unknown; the sizes are {', '.join(known)}")
        if size < 1:
            raise InputError(f"--sizes: {name}: expected at least 1, found {size}")
    return {tree.LETTERS[name]: size for name, size in sizes.items() if name in tree.LETTERS}


# ---- a released π0 as a policy


def is_released(directory: str | os.PathLike[str]) -> bool:
    """Returns whether a folder holds a π0 of another format and no checkpoint of ours."""
    if not checkpoints.locate(directory).is_dir():
        return False
    folder = Folder(directory)
    is_other = openpi.recognise_jax(folder) or safetensors_files.are_in(folder)
    return is_other and not ours.recognise(folder)


def read_released(
    directory: str | os.PathLike[str], options: Options, dtype: Dtype | None
) -> tuple[Description, Any, list[str]]:
    """Reads what a policy needs of a released π0, a leaf at a time; nothing is written.

    Args:
        directory: openpi's folder (JAX or PyTorch) or LeRobot's, or a gs:// or s3:// URL.
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
            f"{source.path}: a checkpoint of ours says what it needs; expected none of robot,"
            " embodiment, tokenizer, sizes and state_in_prompt"
        )
    description = ours.describe(source).computing_in(dtype)
    kept = {
        path: leaf.read(None).astype(storage_dtype(path, description.policy.dtype), copy=False)
        for path, leaf in source.leaves.items()
    }
    return description, unflatten(kept), notes
