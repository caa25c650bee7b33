"""Franka datasets, each of its own laboratory: HYDRA, NYU play, FurnitureBench, CMU pick-up and insert, FMB."""

import numpy as np

from pi0_jax.data.grippers import CLOSED_IS_1
from pi0_jax.data.oxe.primitives import CLOSING_COMMANDS, OPENING_COMMANDS, all_steps
from pi0_jax.data.oxe.rotations import quaternion_to_euler
from pi0_jax.data.rows import CameraField, Columns, Dataset, Language, RawField, Standardised
from pi0_jax.embodiments import EMBODIMENTS

_STATE, _ACTION = "steps/observation/state", "steps/action"
_POSE, _OPENING = "steps/observation/eef_pose", "steps/observation/state_gripper_pose"
_IMAGE, _WRIST_IMAGE = "steps/observation/image", "steps/observation/wrist_image"
_LANGUAGE = Language(("steps/language_instruction",))
_RGB = {"base": CameraField(_IMAGE), "wrist": CameraField(_WRIST_IMAGE)}
_BGR = {"base": CameraField(_IMAGE, "BGR"), "wrist": CameraField(_WRIST_IMAGE, "BGR")}
_FMB = {
    "base": CameraField("steps/observation/image_side_1", "BGR"),
    "wrist": CameraField("steps/observation/image_wrist_1", "BGR"),
}
_SWAPPED = (
    "All cameras are stored as BGR and read as such; public pipelines train on swapped colours."
)
_VAGUE = "Instructions are vague or the same throughout; they are kept, as a policy with language alone has nothing else."


def standardise_hydra(columns: Columns) -> Standardised:
    """State: x y z, roll pitch yaw, width of the gripper, of the 27 numbers 0-2, 7-9 and 24. Action as recorded."""
    state = columns[_STATE]
    return all_steps(
        np.concatenate([state[:, 0:3], state[:, 7:10], state[:, 24:25]], axis=1), columns[_ACTION]
    )


def standardise_nyu_play(columns: Columns) -> Standardised:
    """State: x y z, roll pitch yaw, the last six of 13 numbers (seven joints come first).

    Action: change of the pose and gripper, action[7:14] of 15: joint velocities come before, and after them whether the episode ends.
    """
    return all_steps(columns[_STATE][:, 7:13], columns[_ACTION][:, 7:14])


def standardise_furniture_bench(columns: Columns) -> Standardised:
    """State: x y z, quaternion x y z w, width of the gripper, of the 35 numbers 0-6 and 34.

    Action: change of x y z, the quaternion action[3:7] (x y z w) of the turn as roll pitch yaw, gripper as recorded.
    """
    state, action = columns[_STATE], columns[_ACTION]
    turn = quaternion_to_euler(action[:, 3:7])
    return all_steps(
        np.concatenate([state[:, 0:7], state[:, 34:35]], axis=1),
        np.concatenate([action[:, 0:3], turn, action[:, 7:8]], axis=1),
    )


def standardise_iamlab(columns: Columns) -> Standardised:
    """State: seven joints, gripper (1 = open), the first eight of 20 numbers.

    Action: pose to reach: x y z, the quaternion action[3:7] (x y z w) as roll pitch yaw, gripper as it is.
    """
    action = columns[_ACTION]
    euler = quaternion_to_euler(action[:, 3:7])
    return all_steps(
        columns[_STATE][:, 0:8], np.concatenate([action[:, 0:3], euler, action[:, 7:8]], axis=1)
    )


def standardise_fmb(columns: Columns) -> Standardised:
    """State: pose of the end effector as recorded, gripper. Action: as it is."""
    return all_steps(
        np.concatenate([columns[_POSE], columns[_OPENING][:, None]], axis=1), columns[_ACTION]
    )


_FMB_NOTES = (
    _SWAPPED,
    "The second side camera and the second wrist camera are not used: a robot has one slot for each place.",
    "Actions are taken as normalised controller commands; no page gives a unit. The gripper is taken as 1 = open, as public loaders do.",
)

FRANKA = (
    Dataset(
        name="stanford_hydra_dataset_converted_externally_to_rlds",
        tfds_name="stanford_hydra_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_hydra"],
        cameras=_BGR,
        fields={
            _STATE: RawField((27,), "float32", quaternions=(3,)),
            _ACTION: RawField((7,), "float32"),
        },
        language=_LANGUAGE,
        standardise=standardise_hydra,
        grippers={"gripper": CLOSED_IS_1},
        revision=1,
        notes=(
            _SWAPPED,
            _VAGUE,
            "Three numbers describe the gripper's state; the first is taken as its width in metres.",
        ),
    ),
    Dataset(
        name="nyu_franka_play_dataset_converted_externally_to_rlds",
        tfds_name="nyu_franka_play_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_nyu_play"],
        cameras={"base": CameraField(_IMAGE)},
        fields={_STATE: RawField((13,), "float32"), _ACTION: RawField((15,), "float32")},
        language=_LANGUAGE,
        standardise=standardise_nyu_play,
        grippers={"gripper": OPENING_COMMANDS},
        revision=1,
        notes=(
            _VAGUE,
            "The second view (image_additional_view) and the depth images are not used.",
        ),
    ),
    Dataset(
        name="furniture_bench_dataset_converted_externally_to_rlds",
        tfds_name="furniture_bench_dataset_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_furniture_bench"],
        cameras=_RGB,
        fields={
            _STATE: RawField((35,), "float32", quaternions=(3,)),
            _ACTION: RawField((8,), "float32", quaternions=(3,)),
        },
        language=_LANGUAGE,
        standardise=standardise_furniture_bench,
        grippers={"gripper": CLOSING_COMMANDS},
        revision=1,
        notes=(
            "The state's 35 numbers are the sum of the parts that its authors name; no page gives its width.",
        ),
    ),
    Dataset(
        name="iamlab_cmu_pickup_insert_converted_externally_to_rlds",
        tfds_name="iamlab_cmu_pickup_insert_converted_externally_to_rlds",
        versions=("0.1.0",),
        embodiment=EMBODIMENTS["franka_iamlab"],
        cameras=_RGB,
        fields={
            _STATE: RawField((20,), "float32"),
            _ACTION: RawField((8,), "float32", quaternions=(3,)),
        },
        language=_LANGUAGE,
        standardise=standardise_iamlab,
        revision=1,
        notes=(
            "Actions are poses to reach, so absolute; public pipelines declare them as changes.",
            "The quaternion is taken as x y z w; the pose is handed out with roll, pitch and yaw in its place.",
        ),
    ),
    Dataset(
        name="fmb",
        tfds_name="fmb",
        versions=("0.0.1",),
        embodiment=EMBODIMENTS["franka_fmb"],
        cameras=_FMB,
        fields={
            _POSE: RawField((7,), "float32", quaternions=(3,)),
            _OPENING: RawField((), "float32"),
            _ACTION: RawField((7,), "float32"),
        },
        language=_LANGUAGE,
        standardise=standardise_fmb,
        revision=1,
        notes=_FMB_NOTES,
    ),
    Dataset(
        name="fmb_dataset",
        tfds_name="fmb_dataset",
        versions=("1.0.0",),
        embodiment=EMBODIMENTS["franka_fmb_euler"],
        cameras=_FMB,
        fields={
            _POSE: RawField((6,), "float32"),
            _OPENING: RawField((), "float32"),
            _ACTION: RawField((7,), "float32"),
        },
        language=_LANGUAGE,
        standardise=standardise_fmb,
        revision=1,
        notes=(
            *_FMB_NOTES,
            "A private conversion that public mixtures name; its structure is not published. Its pose is taken as x y z, roll pitch yaw.",
        ),
    ),
)
