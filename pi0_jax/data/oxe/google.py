"""Datasets that Google recorded: RT-1 (fractal20220817_data), QT-Opt's bin grasping (kuka), BC-Z and Language Table."""

import numpy as np

from pi0_jax.data.grippers import CLOSED_IS_1
from pi0_jax.data.oxe.primitives import (
    all_steps,
    axis_angle_change,
    decode_zlib,
    opening_after_commands,
)
from pi0_jax.data.oxe.rtx_fields import CLOSING, MOTION_FIELDS, motion, rtx_row
from pi0_jax.data.rows import CameraField, Columns, Language, RawField, Standardised

_IMAGE = {"base": CameraField("steps/observation/image")}

_POSE = "steps/observation/base_pose_tool_reached"  # x y z (m), quaternion x y z w, in the robot's base frame
_CLOSED = "steps/observation/gripper_closed"  # 1 = closed
_HAS_ASPECTS = "aspects/has_aspects"
_SUCCESS_ASPECT = "aspects/success"


def standardise_fractal(columns: Columns) -> Standardised:
    """Commanded changes of the pose as recorded; the gripper's commands (close, open, hold) become what it was last told."""
    state = np.concatenate([columns[_POSE], columns[_CLOSED]], axis=1)
    action = np.column_stack([motion(columns), opening_after_commands(columns[CLOSING][:, 0])])
    return all_steps(
        state, action, bool(columns[_SUCCESS_ASPECT]) if columns[_HAS_ASPECTS] else None
    )


_KUKA_POSE = "steps/observation/clip_function_input/base_pose_tool_reached"  # as _POSE, compressed
_SUCCESS = "success"


def standardise_kuka(columns: Columns) -> Standardised:
    """As RT-1's rule; an episode whose grasp failed keeps no step. Pose and gripper are stored as compressed bytes."""
    state = np.concatenate(
        [decode_zlib(columns[_KUKA_POSE], (7,)), decode_zlib(columns[_CLOSED], (1,))], axis=1
    )
    action = np.column_stack([motion(columns), opening_after_commands(columns[CLOSING][:, 0])])
    success = bool(columns[_SUCCESS])
    result = all_steps(state, action, success)
    return result._replace(keep=result.keep & success)


_XYZ = "steps/observation/present/xyz"  # m
_AXIS_ANGLE = "steps/observation/present/axis_angle"  # rad
_SENSED_CLOSE = "steps/observation/present/sensed_close"  # 0 to 1 = closed
_XYZ_RESIDUALS = (
    "steps/action/future/xyz_residual"  # the next ten targets, each relative to the present
)
_AXIS_ANGLE_RESIDUALS = "steps/action/future/axis_angle_residual"
_TARGET_CLOSE = "steps/action/future/target_close"  # 1 = closed, of the next ten
_EPISODE_SUCCESS = "steps/observation/episode_success"


def standardise_bc_z(columns: Columns) -> Standardised:
    """The first of the next ten targets: translation as it is, the rotation's axis-angle sum as roll, pitch, yaw of the change.

    TFDS describes the residuals as numbers "to add to the current axis angle": see axis_angle_change.
    """
    state = np.concatenate([columns[_XYZ], columns[_AXIS_ANGLE], columns[_SENSED_CLOSE]], axis=1)
    rotation = axis_angle_change(columns[_AXIS_ANGLE], columns[_AXIS_ANGLE_RESIDUALS][:, 0:3])
    gripper = columns[_TARGET_CLOSE][:, 0]
    action = np.column_stack([columns[_XYZ_RESIDUALS][:, 0:3], rotation, gripper])
    return all_steps(state, action, bool(columns[_EPISODE_SUCCESS].max() > 0.5))


_EFFECTOR = "steps/observation/effector_translation"  # x y (m)
_PUSH = "steps/action"  # change of x y (m)


def standardise_language_table(columns: Columns) -> Standardised:
    """As recorded: the arm moves in a plane and has no gripper, so there are two dimensions."""
    return all_steps(columns[_EFFECTOR], columns[_PUSH])


GOOGLE = (
    rtx_row(
        "fractal20220817_data",
        embodiment="google_robot",
        cameras=_IMAGE,
        fields={
            **MOTION_FIELDS,
            CLOSING: RawField((1,), "float32"),
            _POSE: RawField((7,), "float32", quaternions=(3,)),
            _CLOSED: RawField((1,), "float32"),
            _HAS_ASPECTS: RawField((), "bool"),
            _SUCCESS_ASPECT: RawField((), "bool"),
        },
        standardise=standardise_fractal,
        notes=(
            "The gripper counts 1 as closed in the state; of a command to close (+1), open (-1) or hold (0) the action has what was"
            " last told.",
            "Success is reported where the episode has it; episodes that failed are kept, as public pipelines keep them.",
            "The base does not move, and its actions are left out.",
            "A few commands cannot be meant: public statistics reach 22 m in one step. Building refuses their episodes unless told to skip"
            " bad ones.",
        ),
    ),
    rtx_row(
        "kuka",
        embodiment="kuka_iiwa",
        cameras=_IMAGE,
        fields={
            **MOTION_FIELDS,
            CLOSING: RawField((1,), "float32"),
            _KUKA_POSE: RawField((), "string"),
            _CLOSED: RawField((), "string"),
            _SUCCESS: RawField((), "bool"),
        },
        standardise=standardise_kuka,
        notes=(
            "Episodes whose grasp failed, two of three, are in the index and never drawn; pipelines that read the published files"
            " unfiltered train on them.",
            "The instruction is the same in every episode and is kept; Octo blanks it.",
            "The gripper counts 1 as closed in the state; of a command to close, open or hold the action has what was last told.",
        ),
    ),
    rtx_row(
        "bc_z",
        embodiment="google_robot_bc_z",
        cameras=_IMAGE,
        fields={
            _XYZ: RawField((3,), "float32"),
            _AXIS_ANGLE: RawField((3,), "float32"),
            _SENSED_CLOSE: RawField((1,), "float32"),
            _XYZ_RESIDUALS: RawField((30,), "float32"),
            _AXIS_ANGLE_RESIDUALS: RawField((30,), "float32"),
            _TARGET_CLOSE: RawField((10,), "int64"),
            _EPISODE_SUCCESS: RawField((), "float32"),
        },
        standardise=standardise_bc_z,
        grippers={"gripper": CLOSED_IS_1},
        notes=(
            "The rotation is the change from the present axis-angle vector to its sum with the residual, as roll, pitch and yaw;"
            " public pipelines take the residual itself for Euler angles, which is another rotation.",
            "Only version 0.1.0 can be used: later ones lack fields.",
            "Success is reported; episodes that failed and steps that the robot drove itself are kept, as public pipelines keep them.",
            "The gripper counts 1 as closed; in the state it does not fall below about 0.2.",
        ),
    ),
    rtx_row(
        "language_table",
        embodiment="xarm_language_table",
        cameras={"base": CameraField("steps/observation/rgb")},
        versions=("0.1.0", "0.0.1"),
        fields={_EFFECTOR: RawField((2,), "float32"), _PUSH: RawField((2,), "float32")},
        language=Language(("steps/observation/instruction",), encoding="code points"),
        standardise=standardise_language_table,
        notes=(
            "Two dimensions; public pipelines fill in zeros for height and rotation and a gripper that is always open.",
        ),
    ),
)
