"""A LeRobot π0 policy directory (LeRobot 0.6) is one robot's model.

It holds config.json, model.safetensors, and two processors with the robot's statistics:

    policy_preprocessor.json    names its steps; the normalizer's statistics are in a safetensors
                                file beside it: "action.mean", ...
    policy_postprocessor.json   the same for the way back

The statistics are float32.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.convert import lerobot_files, safetensors_file, shards
from pi0_jax.convert.folder import Folder, optional
from pi0_jax.convert.huggingface_names import heads, is_published, pi0_rules
from pi0_jax.convert.lerobot_files import CONFIG, IMAGES, POSTPROCESSOR, PREPROCESSOR
from pi0_jax.convert.metadata import (
    PUBLISHED_VOCABULARY,
    Metadata,
    RobotRecord,
    choose_robot,
    differences,
    read_beside,
    with_beside,
)
from pi0_jax.convert.rules import Rule
from pi0_jax.convert.safetensors_file import SafetensorsFiles
from pi0_jax.convert.source import Leaf, Source, mapped
from pi0_jax.convert.torch_writer import torch_tensors
from pi0_jax.convert.tree import Sizes
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError, expecting
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.normalize import Mode, Statistics, VectorStatistics

NAME = "lerobot"
_EMPTY_CAMERA = "empty_camera_"  # the beginning of names of masked cameras that LeRobot adds
FIRST_NAME = "model.paligemma_with_expert."
RULES: list[Rule] = pi0_rules("model.")
MODES: Mapping[str, Mode] = {"MEAN_STD": "zscore", "QUANTILES": "quantile"}


def read(folder: Folder | None, path: str, tensors: SafetensorsFiles, sizes: Sizes) -> Source:
    """Opens the model, and reads no array yet.

    Args:
        folder: the directory; None for a safetensors file alone.
        path: names the checkpoint in messages.
        tensors: the arrays.
        sizes: those that the user gives, because no tensor shows them.
    """
    metadata = Metadata() if folder is None else _metadata(folder)
    given = heads(tensors.infos, metadata.sizes, sizes)
    source = mapped(tensors, RULES, format=NAME, path=path, given=given, metadata=metadata)
    if folder is not None:
        config = folder.read_json(CONFIG)
        for name in ("max_state_dim", "max_action_dim"):
            if name in config and config[name] != source.sizes["A"]:
                raise InputError(
                    f"{folder.file(CONFIG)}: {name} is {config[name]}, {source.sizes['A']} by the tensors"
                )
    return source


# ---- in


def _metadata(folder: Folder) -> Metadata:
    """Reads what travels beside the weights, from LeRobot's files and from pi0_jax.json."""
    with expecting(
        f"{CONFIG}, {PREPROCESSOR} and {POSTPROCESSOR} as LeRobot writes them", str(folder)
    ):
        own = read_metadata(folder)
    beside = read_beside(folder)
    # The directory does not say what its robot is called.
    if beside is not None and len(beside.robots) == len(own.robots) == 1:
        own = dataclasses.replace(
            own, robots=dict(zip(beside.robots, own.robots.values(), strict=True))
        )
    return with_beside(own, folder, lambda statistics, mode: as_written(statistics, mode)[0])


def read_metadata(folder: Folder) -> Metadata:
    """Reads what LeRobot's own files say.

    Raises:
        InputError: it is another policy than π0; a field or a processor is missing; or we lack its
            normalisation.
    """
    config, where = folder.read_json(CONFIG), str(folder.file(CONFIG))
    fields = (
        "type",
        "chunk_size",
        "n_action_steps",
        "tokenizer_max_length",
        "input_features",
        "output_features",
        "normalization_mapping",
    )
    missing = [name for name in fields if name not in config]
    if missing:
        raise InputError(f"{where}: lacks {', '.join(missing)}")
    if config["type"] != "pi0":
        raise InputError(f"{where}: expected a policy of type pi0, found {config['type']}")
    mode = _mode(config["normalization_mapping"], where)
    robots = {}
    if PREPROCESSOR in folder:
        embodiment = _embodiment(config, folder)
        robots[embodiment.name] = RobotRecord(_statistics(folder), embodiment)
    return Metadata(
        robots=robots,
        horizon=config["chunk_size"],
        max_tokens=config["tokenizer_max_length"],
        normalization=mode,
    )


def _mode(mapping: Mapping[str, str], where: str) -> Mode:
    """Returns our name of the normalisation."""
    modes = {mapping[kind] for kind in ("STATE", "ACTION") if kind in mapping}
    if len(modes) != 1 or not modes <= set(MODES):
        raise InputError(
            f"{where}: normalization_mapping: expected {' or '.join(MODES)} of STATE and ACTION, found {dict(mapping)}"
        )
    return MODES[modes.pop()]


def _statistics(folder: Folder) -> Statistics:
    """Reads the robot's statistics, which must be the same in both processors."""
    files = []
    for description, kind in (
        (PREPROCESSOR, "normalizer_processor"),
        (POSTPROCESSOR, "unnormalizer_processor"),
    ):
        if description not in folder:
            raise InputError(f"{folder}: {description} is missing")
        files.append(_state_file(folder, description, kind))
    before, after = files
    for name, values in before.items():
        if name.startswith("action.") and name in after and not np.array_equal(values, after[name]):
            raise InputError(f"{folder}: {name} differs between {PREPROCESSOR} and {POSTPROCESSOR}")
    return Statistics(
        _vector(before, "observation.state", folder), _vector(before, "action", folder)
    )


def _state_file(folder: Folder, description: str, kind: str) -> dict[str, np.ndarray]:
    """Reads the statistics of a processor's step."""
    record = folder.read_json(description)
    files = [
        step["state_file"]
        for step in record["steps"]
        if "state_file" in step and optional(step, "registry_name") == kind
    ]
    if len(files) != 1 or files[0] not in folder:
        found = ", ".join(files) or "none"
        raise InputError(
            f"{folder.file(description)}: expected one {kind} with its statistics beside it, found {found}"
        )
    tensors = SafetensorsFiles([folder.file(files[0])])
    return {name: tensors.read(name) for name in tensors.infos}


def _vector(values: Mapping[str, np.ndarray], feature: str, folder: Folder) -> VectorStatistics:
    """Returns the statistics of one feature."""
    found = {
        key: values[f"{feature}.{key}"].astype(np.float64).reshape(-1)
        for key in normalize.FIELDS
        if f"{feature}.{key}" in values
    }
    missing = [f"{feature}.{key}" for key in ("mean", "std") if key not in found]
    if missing:
        raise InputError(f"{folder}: statistics lack {', '.join(missing)}")
    vector = VectorStatistics(
        mean=found["mean"],
        std=found["std"],
        q01=found.get("q01"),
        q99=found.get("q99"),
        minimum=found.get("min"),
        maximum=found.get("max"),
    )
    return normalize.check(vector, str(folder), feature)


def _embodiment(config: Mapping[str, Any], folder: Folder) -> Embodiment:
    """Returns what config.json says of the robot.

    That is its cameras in the model's order, how many dimensions it has, and which are learnt
    relative to the state. It names no units and no control rate; 0 Hz stands for that.
    """
    where = str(folder.file(CONFIG))
    images = [
        name.removeprefix(IMAGES)
        for name, feature in config["input_features"].items()
        if feature["type"] == "VISUAL"
    ]
    cameras = [name for name in images if not name.startswith(_EMPTY_CAMERA)]
    if len(cameras) > len(CAMERA_SLOTS):
        raise InputError(
            f"{where}: expected at most {len(CAMERA_SLOTS)} cameras, found {', '.join(cameras)}"
        )
    dims = {}
    for group, kind in (("input_features", "STATE"), ("output_features", "ACTION")):
        shapes = [feature["shape"] for feature in config[group].values() if feature["type"] == kind]
        if len(shapes) != 1 or len(shapes[0]) != 1:
            raise InputError(f"{where}: {group}: expected one {kind} vector, found shapes {shapes}")
        dims[kind] = shapes[0][0]
    named = optional(config, "action_feature_names")
    if named is not None and len(named) != dims["ACTION"]:
        raise InputError(
            f"{where}: action_feature_names: expected {dims['ACTION']} names, found {len(named)}"
        )
    names = named or [f"action_{i}" for i in range(dims["ACTION"])]
    deltas = [bool(optional(config, "use_relative_actions"))] * len(names)
    if any(deltas) and named:  # LeRobot excludes none without names
        deltas = lerobot_files.relative_mask(
            names, optional(config, "relative_exclude_joints") or []
        )
    return Embodiment(
        name=folder.place.name,
        robot="of a LeRobot policy directory, which names no units",
        cameras=dict(zip(CAMERA_SLOTS, cameras, strict=False)),
        state=tuple(StateDim(f"state_{i}", "unknown") for i in range(dims["STATE"])),
        actions=tuple(
            # LeRobot's deltas are relative to the state at the same place.
            ActionDim(
                name,
                "unknown",
                "absolute",
                delta=delta,
                delta_from=f"state_{i}" if delta else "",
            )
            for i, (name, delta) in enumerate(zip(names, deltas, strict=True))
        ),
        control_hz=0.0,
        execute_steps=config["n_action_steps"],
    )


# ---- out


def write(source: Source, folder: Path) -> list[str]:
    """Writes the directory.

    Args:
        source: the checkpoint, with one robot.
        folder: the directory, which is empty.

    Returns:
        Notes for the user.

    Raises:
        InputError: there is no robot, or several, or one without its embodiment.
    """
    metadata = source.metadata
    name, record = choose_robot(metadata, None, source.path)
    if record.embodiment is None:
        raise InputError(
            f"{source.path}: robot {name}: expected its embodiment, found none; name a record with --embodiment"
        )
    leaves, arrays = torch_tensors(source, RULES)
    statistics, still = as_written(record.statistics, metadata.mode)
    model = source.model_config()
    mode = next(name for name, mode in MODES.items() if mode == metadata.mode)
    lerobot_files.write(
        folder, model, metadata, record.embodiment, mode=mode, dtype=shards.one_dtype(leaves)
    )
    for file in (lerobot_files.PREPROCESSOR_STATE, lerobot_files.POSTPROCESSOR_STATE):
        _write_statistics(folder / file, statistics)
    safetensors_file.write(folder / shards.SINGLE, leaves, arrays)
    return _notes(source, record.embodiment, still)


def as_written(statistics: Statistics, mode: Mode) -> tuple[Statistics, list[str]]:
    """Returns the statistics that make LeRobot normalise as we do.

    A dimension without spread is only centred (normalize.py); LeRobot would divide it by 1e-6. So
    it gets a spread of 1.

    Args:
        statistics: the robot's own.
        mode: how states and actions are normalised.

    Returns:
        The statistics, and the names of the dimensions for which they are not the robot's own.
    """
    still, parts = [], {}
    for part, vector in statistics._asdict().items():
        constant = normalize.constant(vector, mode)
        still += [f"{part}[{i}]" for i in np.flatnonzero(constant)]
        std = np.where(constant, 1.0, vector.std) if mode == "zscore" else vector.std
        q01, q99 = vector.q01, vector.q99
        if mode == "quantile":
            q01, q99 = np.where(constant, q01 - 1.0, q01), np.where(constant, q01 + 1.0, q99)
        parts[part] = vector._replace(std=std, q01=q01, q99=q99)
    return Statistics(**parts), still


def _write_statistics(file: Path, statistics: Statistics) -> None:
    """Writes a processor's statistics in float32."""
    arrays = {
        f"{feature}.{key}": values.astype(np.float32)
        for feature, vector in (
            ("action", statistics.actions),
            ("observation.state", statistics.state),
        )
        for key, values in zip(normalize.FIELDS, vector, strict=True)
        if values is not None
    }
    leaves = {name: Leaf(array.shape, array.dtype) for name, array in sorted(arrays.items())}
    safetensors_file.write(file, leaves, (arrays[name] for name in leaves))


def _notes(source: Source, embodiment: Embodiment, still: list[str]) -> list[str]:
    """Returns what the user should know about what was written."""
    notes = []
    if not is_published(source.sizes):
        notes.append(
            "warning: config.json can only name gemma_2b and gemma_300m; LeRobot builds those, and this model has other sizes"
        )
    if source.sizes["V"] != PUBLISHED_VOCABULARY:
        notes.append(
            f"warning: the processors name PaliGemma's tokenizer; this model's vocabulary has {source.sizes['V']} pieces"
        )
    if still:
        notes.append(
            f"{', '.join(still)}: hardly vary; written with a spread of 1, since LeRobot would divide by 1e-6"
        )
    if list(embodiment.cameras) != list(CAMERA_SLOTS[: len(embodiment.cameras)]):
        notes.append(
            f"cameras keep the order of their slots ({', '.join(embodiment.cameras)}); which those are is only in pi0_jax.json"
        )
    return notes + differences(source.metadata, "LeRobot")
