"""Holds the records of DROID's Franka with a Robotiq gripper, in three action spaces, at 15 Hz.

A gripper of 1 is closed, in state and action. Velocities are commands in [-1, 1] of the
controller's largest step, in neither rad/s nor m/s.
"""

from pi0_jax.embodiments.client_keys import ClientKeys
from pi0_jax.embodiments.dims import COMMAND, EULER, POSITION, gripper, joints
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim

_ROBOT = "Franka with Robotiq 2F-85 (DROID)"
_CAMERAS = {"base_0_rgb": "exterior", "left_wrist_0_rgb": "wrist"}
_GRIPPER = StateDim("gripper", "1", one_means="closed")
_CONTROL_HZ, _EXECUTE_STEPS = 15.0, 8
_CLIENT_KEYS = ClientKeys(
    cameras={
        "exterior": "observation/exterior_image_1_left",
        "wrist": "observation/wrist_image_left",
    },
    state=(("observation/joint_position", 7), ("observation/gripper_position", 1)),
)

DROID = (
    Embodiment(
        name="droid",
        robot=f"{_ROBOT}: joint positions, learnt relative to the current ones",
        cameras=_CAMERAS,
        state=(*joints(7), _GRIPPER),
        actions=(
            *(ActionDim(f"joint_{i}", "rad", "absolute", delta=True) for i in range(7)),
            gripper("closed"),
        ),
        control_hz=_CONTROL_HZ,
        execute_steps=_EXECUTE_STEPS,
        client_keys=_CLIENT_KEYS,
    ),
    Embodiment(
        name="droid_velocity",
        robot=f"{_ROBOT}: joint velocities",
        cameras=_CAMERAS,
        state=(*joints(7), _GRIPPER),
        actions=(
            *(ActionDim(f"joint_velocity_{i}", "1", "relative") for i in range(7)),
            gripper("closed"),
        ),
        control_hz=_CONTROL_HZ,
        execute_steps=_EXECUTE_STEPS,
        client_keys=_CLIENT_KEYS,
    ),
    Embodiment(
        name="droid_cartesian",
        robot=f"{_ROBOT}: velocity of the end effector in the base frame",
        cameras=_CAMERAS,
        state=(*POSITION, *EULER, _GRIPPER),
        actions=(*COMMAND, gripper("closed")),
        control_hz=_CONTROL_HZ,
        execute_steps=_EXECUTE_STEPS,
    ),
)
