"""Franka datasets of the University of Texas at Austin: BUDS, Sailor, Sirius, Mutex. All 20 Hz, one controller, one robot record.

Actions are what the operational-space controller was told, each in [-1, 1] of its largest change: not metres, not radians.
"""

import numpy as np

from pi0_jax.data.oxe.primitives import CLOSING_COMMANDS, all_steps
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE = "steps/observation/state"
_JOINTS, _WIDTH = "steps/observation/state_joint", "steps/observation/state_gripper"
_ACTION = (
    "steps/action"  # change of x y z and roll pitch yaw (normalised), gripper: -1 open, +1 close
)
_IMAGE, _WRIST_IMAGE = "steps/observation/image", "steps/observation/wrist_image"
_LANGUAGE = Language(("steps/language_instruction",))
_RGB = {"base": CameraField(_IMAGE), "wrist": CameraField(_WRIST_IMAGE)}
_BGR = {"base": CameraField(_IMAGE, "BGR"), "wrist": CameraField(_WRIST_IMAGE, "BGR")}
_GRIPPERS = {"gripper": CLOSING_COMMANDS}
_VAGUE = "Instructions are vague or the same throughout; they are kept, as a policy with language alone has nothing else."
_NORMALISED = "Actions are normalised controller commands, not metres or radians."


def standardise(columns: Columns) -> Standardised:
    """State: seven joints and the gripper's width, the first eight numbers (a matrix of the pose follows). Action as recorded."""
    return all_steps(columns[_STATE][:, 0:8], columns[_ACTION])


def standardise_named_state(columns: Columns) -> Standardised:
    """As `standardise`, with joints and width from the fields that hold nothing else."""
    return all_steps(np.concatenate([columns[_JOINTS], columns[_WIDTH]], axis=1), columns[_ACTION])


_ACTION_FIELD = {_ACTION: RawField((7,), "float32")}
_STATE_FIELDS = {_STATE: RawField((24,), "float32"), **_ACTION_FIELD}
_NAMED_STATE_FIELDS = {
    _JOINTS: RawField((7,), "float32"),
    _WIDTH: RawField((1,), "float32"),
    **_ACTION_FIELD,
}

AUSTIN = (
    Dataset(
        name="austin_buds_dataset_converted_externally_to_rlds",
        tfds_name="austin_buds_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_osc"],
        cameras=_RGB,
        fields=_STATE_FIELDS,
        language=_LANGUAGE,
        standardise=standardise,
        grippers=_GRIPPERS,
        revision=1,
        notes=(_NORMALISED, _VAGUE),
    ),
    Dataset(
        name="austin_sailor_dataset_converted_externally_to_rlds",
        tfds_name="austin_sailor_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_osc"],
        cameras=_RGB,
        fields=_NAMED_STATE_FIELDS,
        language=_LANGUAGE,
        standardise=standardise_named_state,
        grippers=_GRIPPERS,
        revision=1,
        notes=(
            _NORMALISED,
            _VAGUE,
            "State is state_joint and state_gripper: the catalog explains 7 of the 8 numbers of `state`, which public pipelines read.",
        ),
    ),
    Dataset(
        name="austin_sirius_dataset_converted_externally_to_rlds",
        tfds_name="austin_sirius_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_osc"],
        cameras=_RGB,
        fields=_NAMED_STATE_FIELDS,
        language=_LANGUAGE,
        standardise=standardise_named_state,
        grippers=_GRIPPERS,
        revision=1,
        notes=(
            _NORMALISED,
            _VAGUE,
            "State is state_joint and state_gripper: the catalog calls `state` joints and gripper, public pipelines read a pose in it.",
            "Steps of the policy's own and of a person's intervention (action_mode, intv_label) are all kept.",
        ),
    ),
    Dataset(
        name="utaustin_mutex",
        tfds_name="utaustin_mutex",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_osc"],
        cameras=_BGR,
        fields=_STATE_FIELDS,
        language=_LANGUAGE,
        standardise=standardise,
        grippers=_GRIPPERS,
        revision=1,
        notes=(
            _NORMALISED,
            "Both cameras are stored as BGR and read as such; public pipelines train on swapped colours.",
        ),
    ),
)
