"""Datasets of the RT-X collection from laboratories other than Google: eight arms, each with a state and a gripper of its own."""

import numpy as np

from pi0_jax.data.oxe.primitives import (
    CLOSING_COMMANDS,
    OPENING_COMMANDS,
    all_steps,
    opening_after_commands,
)
from pi0_jax.data.oxe.rtx_fields import (
    CLOSING,
    MOTION_FIELDS,
    OPEN,
    TRANSLATION,
    motion,
    no_state,
    rtx_row,
)
from pi0_jax.data.rows import CameraField, Columns, RawField, Standardised

_IMAGE = CameraField("steps/observation/image")

_TACO_STATE = "steps/observation/robot_obs"  # x y z (m), roll pitch yaw (rad), gripper width (m), 7 joints (rad), gripper command
_TACO_ACTION = "steps/action/rel_actions_world"  # normalised changes of the pose, gripper command (1 = open, -1 = closed)


def standardise_taco(columns: Columns) -> Standardised:
    """Pose and gripper width; actions as recorded."""
    return all_steps(columns[_TACO_STATE][:, 0:7], columns[_TACO_ACTION])


_JACO_POSE = "steps/observation/end_effector_cartesian_pos"


def standardise_jaco(columns: Columns) -> Standardised:
    """Commands have no rotation: its three dimensions are 0. The gripper's commands become what it was last told."""
    gripper = opening_after_commands(columns[CLOSING][:, 0])
    return all_steps(
        columns[_JACO_POSE],
        np.column_stack([columns[TRANSLATION], np.zeros((len(gripper), 3)), gripper]),
    )


_JOINTS = "steps/observation/robot_state"  # rad


def standardise_cable_routing(columns: Columns) -> Standardised:
    """As recorded: six velocities, and no gripper command."""
    return all_steps(columns[_JOINTS], motion(columns))


def standardise_roboturk(columns: Columns) -> Standardised:
    """Changes of the pose and the gripper's command as recorded."""
    return all_steps(no_state(columns), np.concatenate([motion(columns), columns[CLOSING]], axis=1))


def standardise_nyu_door(columns: Columns) -> Standardised:
    """Velocities as recorded; the gripper's commands become what it was last told."""
    return all_steps(
        no_state(columns),
        np.column_stack([motion(columns), opening_after_commands(columns[CLOSING][:, 0])]),
    )


_VIOLA_JOINTS = "steps/observation/joint_states"  # rad
_VIOLA_WIDTH = "steps/observation/gripper_states"  # m


def standardise_viola(columns: Columns) -> Standardised:
    """Controller and gripper commands as recorded."""
    state = np.concatenate([columns[_VIOLA_JOINTS], columns[_VIOLA_WIDTH]], axis=1)
    return all_steps(state, np.column_stack([motion(columns), columns[CLOSING]]))


# 6 joints (rad), x y z (m), quaternion x y z w, gripper (1 = closed), whether the gripper is moving
_UR5_STATE = "steps/observation/robot_state"


def standardise_ur5(columns: Columns) -> Standardised:
    """Pose and gripper of the state; the gripper's commands become what it was last told."""
    return all_steps(
        columns[_UR5_STATE][:, 6:14],
        np.column_stack([motion(columns), opening_after_commands(columns[CLOSING])]),
    )


_TOTO_JOINTS = "steps/observation/state"  # rad


def standardise_toto(columns: Columns) -> Standardised:
    """Poses and gripper command as recorded."""
    return all_steps(columns[_TOTO_JOINTS], np.column_stack([motion(columns), columns[OPEN]]))


RTX = (
    rtx_row(
        "taco_play",
        embodiment="franka_taco",
        cameras={
            "base": CameraField("steps/observation/rgb_static"),
            "wrist": CameraField("steps/observation/rgb_gripper"),
        },
        fields={_TACO_STATE: RawField((15,), "float32"), _TACO_ACTION: RawField((7,), "float32")},
        standardise=standardise_taco,
        grippers={"gripper": OPENING_COMMANDS},
        notes=(
            "The TFDS page says that the gripper command -1 is open; the authors of the data and public pipelines say 1, and so do we.",
            "The gripper in the state is its width; Octo and OpenVLA take the number after it, which is the first joint's angle.",
            "The actions are normalised: by the authors' description 1 is 0.02 m and 0.05 rad, though some values exceed 1.",
            "The page lists the angles as yaw, pitch, roll and the authors as x, y, z; the order is the files' own.",
        ),
    ),
    rtx_row(
        "jaco_play",
        embodiment="jaco_2",
        cameras={"base": _IMAGE, "wrist": CameraField("steps/observation/image_wrist")},
        fields={
            TRANSLATION: RawField((3,), "float32"),
            CLOSING: RawField((1,), "float32"),
            _JACO_POSE: RawField((7,), "float32"),
        },
        standardise=standardise_jaco,
        notes=(
            "The commands have no rotation; its three dimensions are always 0.",
            "The last four numbers of the state are not documented: sources read them as a quaternion, or as roll, pitch, yaw and"
            " the gripper. They are as recorded, without units.",
            "The commands' unit is not documented; they reach 0.2, which is the arm's highest speed in m/s.",
        ),
    ),
    rtx_row(
        "berkeley_cable_routing",
        embodiment="franka_cable_routing",
        cameras={
            "base": _IMAGE,
            "wrist": CameraField("steps/observation/wrist45_image"),
            "wrist_2": CameraField("steps/observation/wrist225_image"),
        },
        fields={**MOTION_FIELDS, _JOINTS: RawField((7,), "float32")},
        standardise=standardise_cable_routing,
        notes=(
            "The gripper is never commanded and is left out; public pipelines say that it is closed in every action.",
            "The actions are velocities in [-1, 1], of which only the one about z turns; their unit is not documented.",
            "The second wrist camera fills the slot of a right wrist; the view from above, which Octo uses, is left out.",
            "That the seven numbers of the state are joint positions is what public pipelines say.",
        ),
    ),
    rtx_row(
        "roboturk",
        embodiment="sawyer_roboturk",
        cameras={"base": CameraField("steps/observation/front_rgb")},
        fields={**MOTION_FIELDS, CLOSING: RawField((1,), "float32")},
        standardise=standardise_roboturk,
        grippers={"gripper": CLOSING_COMMANDS},
        notes=(
            "The robot's state was not recorded: the state has no dimension.",
            "That the rotation is roll, pitch and yaw is not documented; for turns this small an axis-angle vector differs little.",
        ),
    ),
    rtx_row(
        "nyu_door_opening_surprising_effectiveness",
        embodiment="stretch_nyu_door",
        cameras={"wrist": _IMAGE},
        fields={**MOTION_FIELDS, CLOSING: RawField((1,), "float32")},
        standardise=standardise_nyu_door,
        notes=(
            "The robot's state was not recorded: the state has no dimension.",
            "The only camera is the one on the wrist.",
            "The TFDS page calls the actions velocities; their scale is not documented.",
        ),
    ),
    rtx_row(
        "viola",
        embodiment="franka_osc",
        cameras={
            "base": CameraField("steps/observation/agentview_rgb"),
            "wrist": CameraField("steps/observation/eye_in_hand_rgb"),
        },
        fields={
            **MOTION_FIELDS,
            CLOSING: RawField((), "float32"),
            _VIOLA_JOINTS: RawField((7,), "float32"),
            _VIOLA_WIDTH: RawField((1,), "float32"),
        },
        standardise=standardise_viola,
        grippers={"gripper": CLOSING_COMMANDS},
        notes=(
            "The actions are what the controller was told, in [-1, 1], and not metres and radians.",
        ),
    ),
    rtx_row(
        "berkeley_autolab_ur5",
        embodiment="ur5_autolab",
        cameras={"base": _IMAGE, "wrist": CameraField("steps/observation/hand_image", order="BGR")},
        fields={
            **MOTION_FIELDS,
            CLOSING: RawField((), "float32"),
            _UR5_STATE: RawField((15,), "float32", quaternions=(9,)),
        },
        standardise=standardise_ur5,
        notes=(
            "The wrist camera's channels are stored in the order blue, green, red and put right when an image is read; Octo and"
            " OpenVLA rely on files in which someone has already done so.",
            "The gripper counts 1 as closed in the state; of a command to close, open or hold the action has what was last told.",
        ),
    ),
    rtx_row(
        "toto",
        embodiment="franka_toto",
        cameras={"base": _IMAGE},
        fields={
            **MOTION_FIELDS,
            OPEN: RawField((), "bool"),
            _TOTO_JOINTS: RawField((7,), "float32"),
        },
        standardise=standardise_toto,
        notes=(
            "The fields are called changes, but they hold poses: translations reach 0.8 m at 30 steps a second. So they are absolute,"
            " and past an episode's end the last one holds; public pipelines take them for changes.",
            "That the rotation is roll, pitch and yaw is not documented.",
        ),
    ),
)
