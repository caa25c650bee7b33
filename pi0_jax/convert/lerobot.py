"""A LeRobot π0 or π0.5 policy directory (LeRobot 0.6) is one robot's model.

It holds config.json, model.safetensors, and two processors with the robot's statistics:

    policy_preprocessor.json    names its steps; the normalizer's statistics are in a safetensors
                                file beside it: "action.mean", ...
    policy_postprocessor.json   the same for the way back

The statistics are float32. The JSON files are written as LeRobot 0.6.1 does.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.convert import safetensors_files
from pi0_jax.convert.folder import Folder
from pi0_jax.convert.huggingface_names import (
    PUBLISHED_PORT_VARIANTS,
    heads,
    is_published,
    pi0_rules,
)
from pi0_jax.convert.metadata import (
    FILE,
    PUBLISHED_TOKENIZER,
    PUBLISHED_VOCABULARY,
    Metadata,
    RobotRecord,
    choose_robot,
    differences,
    for_ports,
    known_embodiment,
    read_beside,
    with_beside,
)
from pi0_jax.convert.rules import Rule
from pi0_jax.convert.source import LazyArray, Source, Tensors, in_memory, mapped, torch_tensors
from pi0_jax.convert.tree import Sizes, is_pi05
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError, expecting
from pi0_jax.models.pi0 import Pi0Config
from pi0_jax.models.time_code import MAX_PERIOD, MIN_PERIOD
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.preprocess import normalize
from pi0_jax.preprocess.normalize import Mode, Statistics, VectorStatistics

NAME = "lerobot"
FIRST_NAME = "model.paligemma_with_expert."
RULES: list[Rule] = pi0_rules("model.")
MODES: Mapping[str, Mode] = {"MEAN_STD": "zscore", "QUANTILES": "quantile"}

CONFIG = "config.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
# A π0.5 normalises before it makes the prompt, which tells the state.
PREPROCESSOR_STATES = {
    "pi0": "policy_preprocessor_step_6_normalizer_processor.safetensors",
    "pi05": "policy_preprocessor_step_3_normalizer_processor.safetensors",
}
POSTPROCESSOR_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
_STATE, _ACTION, _IMAGES = "observation.state", "action", "observation.images."
_EMPTY_CAMERA = "empty_camera_"  # the beginning of names of masked cameras that LeRobot adds
_EULER_STEPS = 10  # as published, where no run says otherwise
# What a π0 of LeRobot needs of config.json, and what we write of the rest.
_NEEDED = (
    "type", "chunk_size", "n_action_steps", "tokenizer_max_length", "input_features", "output_features", "normalization_mapping"
)  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "n_obs_steps": 1, "device": "cpu", "use_amp": False, "use_peft": False, "push_to_hub": True, "repo_id": None,
    "private": None, "tags": None, "license": None, "pretrained_path": None, "pretrained_revision": None,
    "time_sampling_beta_alpha": 1.5, "time_sampling_beta_beta": 1.0, "time_sampling_scale": 0.999, "time_sampling_offset": 0.001,
    "rtc_config": None, "empty_cameras": 0, "gradient_checkpointing": False, "compile_model": False, "compile_mode": "max-autotune",
    "freeze_vision_encoder": False, "train_expert_only": False, "optimizer_lr": 2.5e-05, "optimizer_betas": [0.9, 0.95],
    "optimizer_eps": 1e-08, "optimizer_weight_decay": 0.01, "optimizer_grad_clip_norm": 1.0, "scheduler_warmup_steps": 1000,
    "scheduler_decay_steps": 30000, "scheduler_decay_lr": 2.5e-06,
}  # fmt: skip

Record = dict[str, Any]


# ---- in


def read(folder: Folder | None, path: str, tensors: Tensors, sizes: Sizes) -> Source:
    """Opens the model; the arguments are those of `openpi.read_torch`."""
    metadata = Metadata() if folder is None else _metadata(folder)
    given = heads(tensors, metadata.sizes, sizes)
    source = mapped(tensors, RULES, format=NAME, path=path, given=given, metadata=metadata)
    if folder is not None:
        config = folder.read_json(CONFIG)
        if (type_ := policy_type(source.sizes)) != config["type"]:
            raise InputError(
                f"{folder.file(CONFIG)}: expected a policy of type {type_}, as its tensors are, found {config['type']}"
            )
        for name in ("max_state_dim", "max_action_dim"):
            if name in config and config[name] != source.sizes["A"]:
                raise InputError(
                    f"{folder.file(CONFIG)}: {name} is {config[name]}, {source.sizes['A']} by the tensors"
                )
    return source


def policy_type(sizes: Sizes) -> str:
    """Returns what LeRobot calls a model of these sizes."""
    return "pi05" if is_pi05(sizes) else "pi0"


def _metadata(folder: Folder) -> Metadata:
    """Reads what travels beside the weights, from LeRobot's files and from pi0_jax.json."""
    files = f"{CONFIG}, {PREPROCESSOR} and {POSTPROCESSOR} as LeRobot writes them"
    with expecting(files, str(folder)):
        own = read_metadata(folder)
    beside = read_beside(folder)
    # The directory does not say what its robot is called.
    if beside is not None and len(beside.robots) == len(own.robots) == 1:
        robots = dict(zip(beside.robots, own.robots.values(), strict=True))
        own = dataclasses.replace(own, robots=robots)
    return with_beside(own, folder)


def read_metadata(folder: Folder) -> Metadata:
    """Reads what LeRobot's own files say.

    Raises:
        InputError: it is another policy than π0 or π0.5; a field or a processor is missing; or we lack its
            normalisation.
    """
    config, where = folder.read_json(CONFIG), str(folder.file(CONFIG))
    if missing := [name for name in _NEEDED if name not in config]:
        raise InputError(f"{where}: lacks {', '.join(missing)}")
    if config["type"] not in PREPROCESSOR_STATES:
        raise InputError(f"{where}: expected a policy of type pi0 or pi05, found {config['type']}")
    mapping = config["normalization_mapping"]
    modes = {mapping[kind] for kind in ("STATE", "ACTION") if kind in mapping}
    if len(modes) != 1 or not modes <= set(MODES):
        raise InputError(
            f"{where}: normalization_mapping: expected {' or '.join(MODES)} of STATE and ACTION, found {dict(mapping)}"
        )
    robots = {}
    if PREPROCESSOR in folder:
        embodiment = _embodiment(config, folder)
        robots[embodiment.name] = RobotRecord(_statistics(folder), embodiment)
    return Metadata(
        robots=robots,
        horizon=config["chunk_size"],
        max_tokens=config["tokenizer_max_length"],
        normalization=MODES[modes.pop()],
    )


def _statistics(folder: Folder) -> Statistics:
    """Reads the robot's statistics, which must be the same in both processors."""
    for description in (PREPROCESSOR, POSTPROCESSOR):
        if description not in folder:
            raise InputError(f"{folder}: {description} is missing")
    before = _step_statistics(folder, PREPROCESSOR, "normalizer_processor")
    after = _step_statistics(folder, POSTPROCESSOR, "unnormalizer_processor")
    for name in before.keys() & after.keys():
        if name.startswith("action.") and not np.array_equal(before[name], after[name]):
            raise InputError(f"{folder}: {name} differs between {PREPROCESSOR} and {POSTPROCESSOR}")
    return Statistics(_vector(before, _STATE, folder), _vector(before, _ACTION, folder))


def _step_statistics(folder: Folder, description: str, kind: str) -> dict[str, np.ndarray]:
    """Reads the statistics of a processor's step."""
    steps = folder.read_json(description)["steps"]
    named = [step for step in steps if step.get("registry_name") == kind]
    files = [step["state_file"] for step in named if "state_file" in step]
    if len(files) != 1 or files[0] not in folder:
        found = ", ".join(files) or "none"
        raise InputError(
            f"{folder.file(description)}: expected one {kind} with its statistics beside it, found {found}"
        )
    tensors = safetensors_files.read_file(folder.file(files[0]))
    return {name: tensor.read(None) for name, tensor in tensors.items()}


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
    optional = (found.get(key) for key in normalize.FIELDS[2:])
    vector = VectorStatistics(found["mean"], found["std"], *optional)
    return normalize.check(vector, str(folder), feature)


def _embodiment(config: Record, folder: Folder) -> Embodiment:
    """Returns what config.json says of the robot: no units and no control rate, so 0 Hz."""
    where = str(folder.file(CONFIG))
    images = [
        name.removeprefix(_IMAGES)
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
    named = config.get("action_feature_names")
    if named is not None and len(named) != dims["ACTION"]:
        raise InputError(
            f"{where}: action_feature_names: expected {dims['ACTION']} names, found {len(named)}"
        )
    names = named or [f"action_{i}" for i in range(dims["ACTION"])]
    deltas = [bool(config.get("use_relative_actions"))] * len(names)
    if any(deltas) and named:  # LeRobot excludes none without names
        deltas = relative_mask(names, config.get("relative_exclude_joints") or [])
    return Embodiment(
        name=folder.place.name,
        robot="of a LeRobot policy directory, which names no units",
        cameras=dict(zip(CAMERA_SLOTS, cameras, strict=False)),
        state=tuple(StateDim(f"state_{i}", "unknown") for i in range(dims["STATE"])),
        actions=tuple(
            # LeRobot's deltas are relative to the state at the same place.
            ActionDim(name, "unknown", "absolute", delta=delta, delta_from=f"state_{i}" * delta)
            for i, (name, delta) in enumerate(zip(names, deltas, strict=True))
        ),
        control_hz=0.0,
        execute_steps=config["n_action_steps"],
    )


def relative_mask(names: Sequence[str], excluded: Sequence[str]) -> list[bool]:
    """Returns for each action dimension whether LeRobot learns it relative to the state.

    It does not if an excluded name is part of the dimension's own, in small or capital letters.
    """
    return [not any(part.lower() in name.lower() for part in excluded) for name in names]


# ---- out


def write(source: Source, folder: Path) -> list[str]:
    """Writes the directory of a checkpoint with one robot; returns notes for the user.

    Raises:
        InputError: there is no robot, or several, or one without its embodiment.
    """
    metadata = source.metadata
    name, record = choose_robot(metadata, None, source.path)
    embodiment = known_embodiment(record, f"{source.path}: robot {name}")
    tensors = dict(torch_tensors(source, RULES))
    dtype = safetensors_files.one_dtype(tensors)
    contents = descriptions(source.model_config(), metadata, embodiment, dtype)
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content, indent=4 if file == CONFIG else 2))
    statistics, _ = for_ports(record, metadata.mode)
    for file in (PREPROCESSOR_STATES[policy_type(source.sizes)], POSTPROCESSOR_STATE):
        safetensors_files.write_file(folder / file, _statistics_tensors(statistics))
    safetensors_files.write_file(folder / safetensors_files.SINGLE, tensors)
    return _notes(source, embodiment)


def _statistics_tensors(statistics: Statistics) -> dict[str, LazyArray]:
    """Returns a processor's statistics, in float32."""
    arrays = {
        f"{feature}.{key}": values.astype(np.float32)
        for feature, vector in ((_ACTION, statistics.actions), (_STATE, statistics.state))
        for key, values in zip(normalize.FIELDS, vector, strict=True)
        if values is not None
    }
    return {name: in_memory(array) for name, array in sorted(arrays.items())}


def descriptions(
    model: Pi0Config, metadata: Metadata, embodiment: Embodiment, dtype: str
) -> dict[str, Record]:
    """Returns the content of the three JSON files; `dtype` is LeRobot's name of the weights'."""
    size = model.vision.image_size
    # LeRobot's π0 reads the cameras in the order of their features.
    cameras = [embodiment.cameras[slot] for slot in CAMERA_SLOTS if slot in embodiment.cameras]
    inputs: Record = {
        f"{_IMAGES}{camera}": {"type": "VISUAL", "shape": [3, size, size]} for camera in cameras
    }
    inputs[_STATE] = {"type": "STATE", "shape": [len(embodiment.state)]}
    outputs: Record = {_ACTION: {"type": "ACTION", "shape": [len(embodiment.actions)]}}
    mode = next(name for name, mode in MODES.items() if mode == metadata.mode)
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    relative, type_ = _relative(embodiment), "pi05" if model.adaptive else "pi0"
    backbone, expert = PUBLISHED_PORT_VARIANTS
    config = {
        **_DEFAULTS, "type": type_, "input_features": inputs, "output_features": outputs, "normalization_mapping": norm_map,
        "paligemma_variant": backbone, "action_expert_variant": expert, "dtype": dtype, "image_resolution": [size, size],
        "chunk_size": model.horizon, "n_action_steps": min(embodiment.execute_steps, model.horizon),
        "max_state_dim": model.action_dim, "max_action_dim": model.action_dim, "tokenizer_max_length": model.max_tokens,
        "num_inference_steps": _EULER_STEPS if metadata.policy is None else metadata.policy.sampling_steps,
        "min_period": MIN_PERIOD, "max_period": MAX_PERIOD, "use_relative_actions": relative["enabled"],
        "relative_exclude_joints": relative["exclude_joints"], "action_feature_names": relative["action_names"],
    }  # fmt: skip
    tokenizer = {
        "max_length": model.max_tokens, "task_key": "task", "padding_side": "right", "padding": "max_length", "truncation": True,
        "tokenizer_name": PUBLISHED_TOKENIZER,
    }  # fmt: skip
    device = {"device": "cpu", "float_dtype": None}
    to_robot: Record = {"eps": normalize.EPSILON, "features": outputs, "norm_map": norm_map}
    to_model = {**to_robot, "features": inputs | outputs}
    prompt = "pi05_prepare_state_tokenizer_processor_step" if model.adaptive else "pi0_new_line_processor"  # fmt: skip
    tokens = [
        _step(prompt, {}),
        _step("tokenizer_processor", tokenizer),
        _step("device_processor", device),
    ]
    numbers = [
        _step("relative_actions_processor", relative),
        _step("normalizer_processor", to_model, state_file=PREPROCESSOR_STATES[type_]),
    ]
    before = [
        _step("rename_observations_processor", {"rename_map": {}}),
        _step("to_batch_processor", {}),
        *(numbers + tokens if model.adaptive else tokens + numbers),
    ]
    after = [
        _step("unnormalizer_processor", to_robot, state_file=POSTPROCESSOR_STATE),
        _step("absolute_actions_processor", {"enabled": relative["enabled"]}),
        _step("device_processor", device),
    ]
    return {
        CONFIG: config,
        PREPROCESSOR: {"name": "policy_preprocessor", "steps": before},
        POSTPROCESSOR: {"name": "policy_postprocessor", "steps": after},
    }


def _step(name: str, config: Record, **files: str) -> Record:
    """Returns a step of a processor."""
    return {"registry_name": name, "config": config, **files}


def _relative(embodiment: Embodiment) -> Record:
    """Says which actions are learnt relative to the state."""
    deltas = [dim.delta for dim in embodiment.actions]
    if not any(deltas):
        return {"enabled": False, "exclude_joints": ["gripper"], "action_names": None}
    names = [dim.name for dim in embodiment.actions]

    def absolute() -> list[str]:
        return [name for name, delta in zip(names, deltas, strict=True) if not delta]

    # LeRobot looks for parts of names: joint_1 would exclude joint_10 too. Numbers in front of the
    # names prevent that.
    if relative_mask(names, absolute()) != deltas:
        names = [f"{i:02d}:{name}" for i, name in enumerate(names)]
    return {"enabled": True, "exclude_joints": absolute(), "action_names": names}


def _notes(source: Source, embodiment: Embodiment) -> list[str]:
    """Returns what the user should know about what was written."""
    metadata, pieces, order = source.metadata, source.sizes["V"], list(embodiment.cameras)
    tokenizer = "warning: the processors name PaliGemma's tokenizer"
    blind = is_pi05(source.sizes) and not (metadata.policy and metadata.policy.state_in_prompt)
    slots = f"cameras keep the order of their slots ({', '.join(order)})"
    notes = (
        (not is_published(source.sizes), "warning: config.json can only name gemma_2b and gemma_300m, which are of other sizes"),
        (pieces != PUBLISHED_VOCABULARY, f"{tokenizer}; this model's vocabulary has {pieces} pieces"),
        (blind, "warning: this π0.5 reads no state; LeRobot's prompt tells it, so its actions will differ"),
        (order != list(CAMERA_SLOTS[: len(order)]), f"{slots}; which those are is only in {FILE}"),
    )  # fmt: skip
    return [note for holds, note in notes if holds] + differences(metadata, "LeRobot")
