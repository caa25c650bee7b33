"""DROID (Franka, 15 Hz): the same files as three rows, which differ in the action space.

One of the three instructions is drawn for each sample, an empty one never; so is one of the two exterior views.
"""

import numpy as np

from pi0_jax.data.grippers import CLOSED_IS_1
from pi0_jax.data.rows import (
    CameraField,
    Columns,
    Dataset,
    Language,
    RawField,
    Rule,
    Standardised,
)
from pi0_jax.embodiments import EMBODIMENTS

_OBSERVATION, _COMMAND = "steps/observation", "steps/action_dict"
# rad; m and roll pitch yaw in rad
_JOINTS, _POSE = (
    f"{_OBSERVATION}/joint_position",
    f"{_OBSERVATION}/cartesian_position",
)
_GRIPPER = f"{_OBSERVATION}/gripper_position"  # 1 = closed
# rad; [-1, 1]
_JOINT_TARGET, _JOINT_VELOCITY = (
    f"{_COMMAND}/joint_position",
    f"{_COMMAND}/joint_velocity",
)
_POSE_VELOCITY = f"{_COMMAND}/cartesian_velocity"  # [-1, 1]
_GRIPPER_TARGET = f"{_COMMAND}/gripper_position"  # 1 = closed
_FILE = "episode_metadata/file_path"

_STILL = 1e-3  # largest change of a commanded joint velocity within a step of an idle robot
_IDLE_RUN = 7  # idle steps in a row that are removed
_ACTIVE_RUN = 16  # other steps in a row that are enough to keep them
_RUN_END = 10  # last steps of a kept run, too near to its end for a chunk


def standardise_joint_position(columns: Columns) -> Standardised:
    """State: joints, gripper as recorded (1 = closed). Action: joint targets, gripper as recorded. Steps kept: see `_kept`."""
    return _standardised(columns, columns[_JOINTS], columns[_JOINT_TARGET])


def standardise_joint_velocity(columns: Columns) -> Standardised:
    """As `standardise_joint_position`, with commanded joint velocities."""
    return _standardised(columns, columns[_JOINTS], columns[_JOINT_VELOCITY])


def standardise_cartesian_velocity(columns: Columns) -> Standardised:
    """State: pose of the end effector, gripper as recorded (1 = closed). Action: its commanded velocity in the base frame, gripper."""
    return _standardised(columns, columns[_POSE], columns[_POSE_VELOCITY])


def _standardised(columns: Columns, state: np.ndarray, action: np.ndarray) -> Standardised:
    success = b"/success/" in columns[_FILE].item()
    return Standardised(
        state=np.concatenate([state, columns[_GRIPPER]], axis=1),
        action=np.concatenate([action, columns[_GRIPPER_TARGET]], axis=1),
        keep=_kept(columns[_JOINT_VELOCITY]) & success,
        stop=len(state),
        success=success,
    )


def _kept(velocity: np.ndarray) -> np.ndarray:
    """bool[T]: the steps of a successful episode that may be drawn, from its commanded joint velocities float[T, 7].

    A step is idle where no velocity differs by 1e-3 or more from the step before; the first is not. Idle runs of 7 steps or more are
    removed; of what is left, runs of 16 steps or more are kept, each without its last 10.

        idle      . . x x . x x x x x x x x . . .
        removed             x x x x x x x x          8 idle steps in a row go, 2 do not
        kept       the runs before and after, if they have 16 steps
    """
    idle = np.zeros(len(velocity), bool)
    idle[1:] = (np.abs(np.diff(velocity, axis=0)) < _STILL).all(axis=1)
    removed = np.zeros(len(velocity), bool)
    for start, end in _runs(idle):
        if end - start >= _IDLE_RUN:
            removed[start:end] = True
    kept = np.zeros(len(velocity), bool)
    for start, end in _runs(~removed):
        if end - start >= _ACTIVE_RUN:
            kept[start : end - _RUN_END] = True
    return kept


def _runs(mask: np.ndarray) -> np.ndarray:
    """int[n, 2]: start and end of every run of True in bool[T]."""
    return np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)


def _row(name: str, state: str, action: str, rule: Rule, notes: tuple[str, ...]) -> Dataset:
    """`state` and `action` are the fields of the arm, to which the gripper's come."""
    arm = RawField((len(EMBODIMENTS[name].state) - 1,), "float64")
    return Dataset(
        name=name,
        tfds_name="droid",
        versions=("1.0.1", "1.0.0"),
        embodiment=EMBODIMENTS[name],
        cameras={
            "exterior": CameraField(
                f"{_OBSERVATION}/exterior_image_1_left",
                alternatives=(f"{_OBSERVATION}/exterior_image_2_left",),
            ),
            "wrist": CameraField(f"{_OBSERVATION}/wrist_image_left"),
        },
        fields={
            state: arm,
            action: arm,
            _JOINT_VELOCITY: RawField((7,), "float64"),
            _GRIPPER: RawField((1,), "float64"),
            _GRIPPER_TARGET: RawField((1,), "float64"),
            _FILE: RawField((), "string"),
        },
        language=Language(
            tuple(f"steps/language_instruction{suffix}" for suffix in ("", "_2", "_3"))
        ),
        standardise=rule,
        grippers={"gripper": CLOSED_IS_1},
        revision=1,
        notes=(
            *notes,
            "Steps of failed episodes (file_path without /success/) are never drawn; idle steps are found in the data, so the filter"
            " holds for 1.0.0 as for 1.0.1, where the published list of ranges knows 1.0.1 only.",
            "The exterior view and the instruction are drawn for each sample, not once for an episode; empty instructions are skipped.",
            "Past an episode's end a velocity is 0; the published code repeats the last one.",
        ),
    )


_COMMANDED = (
    "Velocities are commands in [-1, 1] of the controller's largest step, neither rad/s nor m/s."
)

DROID = (
    _row(
        "droid",
        _JOINTS,
        _JOINT_TARGET,
        standardise_joint_position,
        ("Joint targets, learnt relative to the current joints; the gripper stays absolute.",),
    ),
    _row("droid_velocity", _JOINTS, _JOINT_VELOCITY, standardise_joint_velocity, (_COMMANDED,)),
    _row(
        "droid_cartesian",
        _POSE,
        _POSE_VELOCITY,
        standardise_cartesian_velocity,
        (
            _COMMANDED,
            "The action is action_dict/cartesian_velocity, as the public mixtures that hold DROID use it, not the absolute pose.",
            "The state's angles jump from pi to -pi where the gripper points down: it is as recorded.",
        ),
    ),
)
