"""Is a config file with a robot of one's own, a camera in BGR and a rule that drops steps."""

import numpy as np

from pi0_jax.data.rows import Standardised

JOINTS = [f"joint_{i}" for i in range(6)]


def without_homing(columns):
    """Drops the first second, which is the arm's way home; the gripper was recorded as 0 = open."""
    state, action = columns["steps/observation/state"], columns["steps/action"].copy()
    action[:, 6] = 1 - action[:, 6]  # in an index, 1 is open
    return Standardised(state, action, keep=np.arange(len(state)) >= 10, stop=len(state))


MY_ROBOT = dict(
    versions=("1.0.0",),  # data_dir/my_robot/1.0.0
    embodiment=dict(
        robot="six joints and a gripper",
        # The model's slot for an image -> the robot's name for the camera.
        cameras=dict(base_0_rgb="front", left_wrist_0_rgb="wrist"),
        state=[dict(name=name, unit="rad") for name in JOINTS]
        + [dict(name="gripper", unit="1", one_means="closed")],
        actions=[dict(name=name, unit="rad", kind="absolute", delta=True) for name in JOINTS]
        + [dict(name="gripper", unit="1", kind="absolute", low=0.0, high=1.0, one_means="closed")],
        control_hz=10.0,
        execute_steps=8,
    ),
    cameras=dict(
        front=dict(path="steps/observation/image"),
        wrist=dict(path="steps/observation/wrist_image", order="BGR"),
    ),
    fields=[  # where there is no rule, the state first and then the action
        dict(path="steps/observation/state", shape=(7,), dtype="float32"),
        dict(path="steps/action", shape=(7,), dtype="float32"),
    ],
    language=dict(paths=("steps/language_instruction",)),
    standardise=without_homing,  # leave it out where state and action are right as recorded
)
