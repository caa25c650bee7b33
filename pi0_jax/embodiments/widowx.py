"""Holds the record of Bridge V2's WidowX 250: changes of the pose, and a gripper command, at 5 Hz.

A change is one of the pose that was reached.
"""

from pi0_jax.embodiments.dims import EULER, POSE_CHANGE, POSITION, gripper
from pi0_jax.embodiments.record import Embodiment, StateDim

WIDOWX = (
    Embodiment(
        name="widowx",
        robot="WidowX 250",
        cameras={"base_0_rgb": "image_0"},
        state=(*POSITION, *EULER, StateDim("gripper", "1", one_means="open")),
        actions=(*POSE_CHANGE, gripper("open")),
        control_hz=5.0,
        execute_steps=4,  # a new chunk every 0.8 s, as the paper's slower robots (appendix D)
    ),
)
