"""Single arms other than Frankas and WidowX: xArm, DLR EDAN, Fanuc Mate, and the Hello Stretch of CMU and of Dobb-E."""

import numpy as np

from pi0_jax.data.grippers import CLOSED_IS_1
from pi0_jax.data.oxe.primitives import all_steps
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE, _ACTION = "steps/observation/state", "steps/action"
_IMAGE, _WRIST_IMAGE = "steps/observation/image", "steps/observation/wrist_image"
_BASE = {"base": CameraField(_IMAGE)}
_LANGUAGE = Language(("steps/language_instruction",))


def standardise_ucsd_kitchen(columns: Columns) -> Standardised:
    """State: seven joints, the first of 21 numbers. Action: pose to reach and gripper (1 = open); the last number ends the episode.

    The files give millimetres and degrees: here metres and radians.
    """
    action = columns[_ACTION].astype(np.float64)
    return all_steps(
        columns[_STATE][:, 0:7],
        np.concatenate([action[:, 0:3] / 1000, np.deg2rad(action[:, 3:6]), action[:, 6:7]], axis=1),
    )


def standardise_fanuc(columns: Columns) -> Standardised:
    """State: six joints, gripper (1 = closed), the first seven of 13 numbers. Action: change of the pose, the state's gripper."""
    state = columns[_STATE]
    return all_steps(state[:, 0:7], np.concatenate([columns[_ACTION], state[:, 6:7]], axis=1))


def standardise_cmu_stretch(columns: Columns) -> Standardised:
    """State as recorded. Action: the first seven numbers; the last one ends the episode."""
    return all_steps(columns[_STATE], columns[_ACTION][:, 0:7])


ARMS = (
    Dataset(
        name="ucsd_kitchen_dataset_converted_externally_to_rlds",
        tfds_name="ucsd_kitchen_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["xarm_ucsd"],
        cameras=_BASE,
        fields={_STATE: RawField((21,), "float32"), _ACTION: RawField((8,), "float32")},
        language=_LANGUAGE,
        standardise=standardise_ucsd_kitchen,
        revision=1,
        notes=(
            "Actions are poses to reach, so absolute; public pipelines declare them as changes.",
            "No page gives units: published statistics (x about 410, angles up to 180) are those of millimetres and degrees, which xArms"
            " take; they become metres and radians, in which actions are handed out too. Joints are taken as radians.",
        ),
    ),
    Dataset(
        name="dlr_edan_shared_control_converted_externally_to_rlds",
        tfds_name="dlr_edan_shared_control_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["edan"],
        cameras=_BASE,
        fields={_STATE: RawField((7,), "float32"), _ACTION: RawField((7,), "float32")},
        language=_LANGUAGE,
        grippers={"gripper": CLOSED_IS_1},
        revision=1,
        notes=(
            "The catalog calls actions poses; public pipelines take them as changes, and so do we. Not certain.",
            "Rotations are in the files' order: about z, x, y. The last number of state and action is taken as the gripper, 1 = closed.",
        ),
    ),
    Dataset(
        name="berkeley_fanuc_manipulation",
        tfds_name="berkeley_fanuc_manipulation",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["fanuc_mate"],
        cameras={"base": CameraField(_IMAGE, "BGR"), "wrist": CameraField(_WRIST_IMAGE, "BGR")},
        fields={_STATE: RawField((13,), "float32"), _ACTION: RawField((6,), "float32")},
        language=_LANGUAGE,
        standardise=standardise_fanuc,
        grippers={"gripper": CLOSED_IS_1},
        revision=1,
        notes=(
            "All cameras are stored as BGR and read as such; public pipelines train on swapped colours.",
            "No gripper command was recorded: the action's is the state's at the same step.",
            "The catalog calls the state's gripper an open status, public pipelines read 1 as closed, and so do we.",
        ),
    ),
    Dataset(
        name="cmu_stretch",
        tfds_name="cmu_stretch",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["stretch_cmu"],
        cameras=_BASE,
        fields={_STATE: RawField((4,), "float32"), _ACTION: RawField((8,), "float32")},
        language=_LANGUAGE,
        standardise=standardise_cmu_stretch,
        revision=1,
        notes=(
            "The catalog calls actions poses; public pipelines take them as changes, and so do we. Not certain.",
            "The state has no orientation. Dimensions of the action that the robot lacks are 0, as the files hold them.",
        ),
    ),
    Dataset(
        name="dobbe",
        tfds_name="dobbe",
        versions=("0.0.1",),
        embodiment=EMBODIMENTS["stretch_dobbe"],
        cameras={"wrist": CameraField(_WRIST_IMAGE)},
        fields={_STATE: RawField((7,), "float32"), _ACTION: RawField((7,), "float32")},
        language=_LANGUAGE,
        revision=1,
        notes=(
            "The only camera is at the wrist and fills the wrist's slot; some public pipelines show it as a third-person view.",
        ),
    ),
)
