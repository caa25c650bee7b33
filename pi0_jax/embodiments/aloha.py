"""Mobile ALOHA: two arms of six joints, a gripper each, and in the action the velocity of the base; 50 Hz.

state and action   0-5 left arm   6 left gripper   7-12 right arm   13 right gripper
action only       14-15 base: forward, turning
"""

import dataclasses

from pi0_jax.embodiments.dims import gripper
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim

_SIDES = ("left", "right")


def _arm_state(side: str) -> tuple[StateDim, ...]:
    return (*(StateDim(f"{side}_joint_{i}", "rad") for i in range(6)), StateDim(f"{side}_gripper", "1", one_means="open"))


def _arm_actions(side: str) -> tuple[ActionDim, ...]:
    """Joint targets, learnt relative to the current joints, and a gripper opening."""
    return (
        *(ActionDim(f"{side}_joint_{i}", "rad", "absolute", delta=True) for i in range(6)),
        dataclasses.replace(gripper("open"), name=f"{side}_gripper"),
    )


ALOHA = (
    Embodiment(
        name="mobile_aloha",
        robot="Mobile ALOHA",
        cameras={"base_0_rgb": "cam_high", "left_wrist_0_rgb": "cam_left_wrist", "right_wrist_0_rgb": "cam_right_wrist"},
        state=tuple(dim for side in _SIDES for dim in _arm_state(side)),
        actions=(
            *(dim for side in _SIDES for dim in _arm_actions(side)),
            ActionDim("base_forward", "m/s", "relative"),
            ActionDim("base_turn", "rad/s", "relative"),
        ),
        control_hz=50.0,
        execute_steps=25,
    ),
)
