"""A LeRobot π0 policy directory has config.json and processors, written as LeRobot 0.6.1 does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0_jax.convert.huggingface_names import PUBLISHED_PORT_VARIANTS
from pi0_jax.convert.metadata import PUBLISHED_TOKENIZER, Metadata
from pi0_jax.embodiments import Embodiment
from pi0_jax.models.pi0 import MAX_PERIOD, MIN_PERIOD, Pi0Config
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.preprocess import normalize

CONFIG = "config.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
PREPROCESSOR_STATE = "policy_preprocessor_step_6_normalizer_processor.safetensors"
POSTPROCESSOR_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
IMAGES = "observation.images."
_EULER_STEPS = 10  # as published, where no run says otherwise

Record = dict[str, Any]


def write(
    folder: Path,
    model: Pi0Config,
    metadata: Metadata,
    embodiment: Embodiment,
    *,
    mode: str,
    dtype: str,
) -> None:
    """Writes the three descriptions.

    Args:
        folder: the directory.
        model: the model's sizes.
        metadata: what travels beside the weights.
        embodiment: the robot's record.
        mode: LeRobot's name of the normalisation.
        dtype: LeRobot's name of the weights' dtype.
    """
    features = _features(model.vision.image_size, embodiment)
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    relative = _relative(embodiment)
    files = {
        CONFIG: _config(model, metadata, embodiment, features, norm_map, relative, dtype),
        PREPROCESSOR: _preprocessor(model, features, norm_map, relative),
        POSTPROCESSOR: _postprocessor(features, norm_map, relative),
    }
    for name, record in files.items():
        (folder / name).write_text(json.dumps(record, indent=4 if name == CONFIG else 2))


def _features(image_size: int, embodiment: Embodiment) -> Mapping[str, Record]:
    """Returns the features, with cameras in the order of their slots.

    LeRobot's π0 reads the cameras in that order.
    """
    cameras = [embodiment.cameras[slot] for slot in CAMERA_SLOTS if slot in embodiment.cameras]
    return {
        **{
            f"{IMAGES}{camera}": {"type": "VISUAL", "shape": [3, image_size, image_size]}
            for camera in cameras
        },
        "observation.state": {"type": "STATE", "shape": [len(embodiment.state)]},
        "action": {"type": "ACTION", "shape": [len(embodiment.actions)]},
    }


def _relative(embodiment: Embodiment) -> Record:
    """Says which actions are learnt relative to the state."""
    deltas = [dim.delta for dim in embodiment.actions]
    if not any(deltas):
        return {"enabled": False, "exclude_joints": ["gripper"], "action_names": None}
    names = [dim.name for dim in embodiment.actions]
    # LeRobot looks for parts of names: joint_1 would exclude joint_10 too. Numbers in front of the
    # names prevent that.
    if relative_mask(names, _absolute(names, deltas)) != deltas:
        names = [f"{i:02d}:{name}" for i, name in enumerate(names)]
    return {"enabled": True, "exclude_joints": _absolute(names, deltas), "action_names": names}


def _absolute(names: Sequence[str], deltas: Sequence[bool]) -> list[str]:
    """Returns the names of the actions that are not learnt relative to the state."""
    return [name for name, delta in zip(names, deltas, strict=True) if not delta]


def relative_mask(names: Sequence[str], excluded: Sequence[str]) -> list[bool]:
    """Returns for each action dimension whether LeRobot learns it relative to the state.

    It does not if an excluded name is part of the dimension's own, in small or capital letters.
    """
    return [not any(part.lower() in name.lower() for part in excluded) for name in names]


def _config(
    model: Pi0Config,
    metadata: Metadata,
    embodiment: Embodiment,
    features: Mapping[str, Record],
    norm_map: Record,
    relative: Record,
    dtype: str,
) -> Record:
    """Returns the content of config.json."""
    steps = _EULER_STEPS if metadata.policy is None else metadata.policy.sampling_steps
    backbone, expert = PUBLISHED_PORT_VARIANTS
    size = model.vision.image_size
    return {
        "type": "pi0",
        "n_obs_steps": 1,
        "input_features": {
            name: feature for name, feature in features.items() if feature["type"] != "ACTION"
        },
        "output_features": {
            name: feature for name, feature in features.items() if feature["type"] == "ACTION"
        },
        "device": "cpu",
        "use_amp": False,
        "use_peft": False,
        "push_to_hub": True,
        "repo_id": None,
        "private": None,
        "tags": None,
        "license": None,
        "pretrained_path": None,
        "pretrained_revision": None,
        "paligemma_variant": backbone,
        "action_expert_variant": expert,
        "dtype": dtype,
        "chunk_size": model.horizon,
        "n_action_steps": min(embodiment.execute_steps, model.horizon),
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "num_inference_steps": steps,
        "time_sampling_beta_alpha": 1.5,
        "time_sampling_beta_beta": 1.0,
        "time_sampling_scale": 0.999,
        "time_sampling_offset": 0.001,
        "min_period": MIN_PERIOD,
        "max_period": MAX_PERIOD,
        "use_relative_actions": relative["enabled"],
        "relative_exclude_joints": relative["exclude_joints"],
        "action_feature_names": relative["action_names"],
        "rtc_config": None,
        "image_resolution": [size, size],
        "empty_cameras": 0,
        "normalization_mapping": norm_map,
        "gradient_checkpointing": False,
        "compile_model": False,
        "compile_mode": "max-autotune",
        "freeze_vision_encoder": False,
        "train_expert_only": False,
        "optimizer_lr": 2.5e-05,
        "optimizer_betas": [0.9, 0.95],
        "optimizer_eps": 1e-08,
        "optimizer_weight_decay": 0.01,
        "optimizer_grad_clip_norm": 1.0,
        "scheduler_warmup_steps": 1000,
        "scheduler_decay_steps": 30000,
        "scheduler_decay_lr": 2.5e-06,
        "tokenizer_max_length": model.max_tokens,
    }


def _preprocessor(
    model: Pi0Config, features: Mapping[str, Record], norm_map: Record, relative: Record
) -> Record:
    """Returns the content of policy_preprocessor.json."""
    tokenizer = {
        "max_length": model.max_tokens, "task_key": "task", "padding_side": "right", "padding": "max_length", "truncation": True,
        "tokenizer_name": PUBLISHED_TOKENIZER,
    }  # fmt: skip
    return {
        "name": "policy_preprocessor",
        "steps": [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "to_batch_processor", "config": {}},
            {"registry_name": "pi0_new_line_processor", "config": {}},
            {"registry_name": "tokenizer_processor", "config": tokenizer},
            {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
            {"registry_name": "relative_actions_processor", "config": relative},
            {
                "registry_name": "normalizer_processor",
                "config": {"eps": normalize.EPSILON, "features": features, "norm_map": norm_map},
                "state_file": PREPROCESSOR_STATE,
            },
        ],
    }


def _postprocessor(features: Mapping[str, Record], norm_map: Record, relative: Record) -> Record:
    """Returns the content of policy_postprocessor.json."""
    return {
        "name": "policy_postprocessor",
        "steps": [
            {
                "registry_name": "unnormalizer_processor",
                "config": {
                    "eps": normalize.EPSILON,
                    "features": {"action": features["action"]},
                    "norm_map": norm_map,
                },
                "state_file": POSTPROCESSOR_STATE,
            },
            {
                "registry_name": "absolute_actions_processor",
                "config": {"enabled": relative["enabled"]},
            },
            {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
        ],
    }
