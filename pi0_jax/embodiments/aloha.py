"""Holds the records of ALOHA, an arm on the left and an arm on the right, controlled at 50 Hz.

Each arm has six joints and a gripper. On wheels the action has the velocity of the base too.

    state and action   0-5 left arm   6 left gripper   7-12 right arm   13 right gripper
    action only       14-15 base: forward, turning
"""

import dataclasses

from pi0_jax.embodiments.client_keys import ClientKeys
from pi0_jax.embodiments.dims import gripper
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim

_SIDES = ("left", "right")


def _arm_state(side: str) -> tuple[StateDim, ...]:
    """Returns the state of one arm: joint positions and a gripper opening."""
    return (
        *(StateDim(f"{side}_joint_{i}", "rad") for i in range(6)),
        StateDim(f"{side}_gripper", "1", one_means="open"),
    )


def _arm_actions(side: str) -> tuple[ActionDim, ...]:
    """Returns the actions of one arm.

    They are joint targets, learnt relative to the current joints, and a gripper opening.
    """
    return (
        *(ActionDim(f"{side}_joint_{i}", "rad", "absolute", delta=True) for i in range(6)),
        dataclasses.replace(gripper("open"), name=f"{side}_gripper"),
    )


def _client_keys(*cameras: str) -> ClientKeys:
    """Returns the keys under which clients send these cameras and the state.

    Of four cameras the clients send those that they have. The model has no slot for the low one.
    """
    unread = {"cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"} - set(cameras)
    return ClientKeys(
        cameras={camera: f"images/{camera}" for camera in cameras},
        state=(("state", 14),),
        channel_first=True,
        unread=tuple(f"images/{camera}" for camera in sorted(unread)),
    )


_CAMERAS = {
    "base_0_rgb": "cam_high",
    "left_wrist_0_rgb": "cam_left_wrist",
    "right_wrist_0_rgb": "cam_right_wrist",
}
_STATE = tuple(dim for side in _SIDES for dim in _arm_state(side))
_ACTIONS = tuple(dim for side in _SIDES for dim in _arm_actions(side))

ALOHA = (
    Embodiment(
        name="aloha",
        robot="ALOHA",
        cameras=_CAMERAS,
        state=_STATE,
        actions=_ACTIONS,
        control_hz=50.0,
        execute_steps=25,
        client_keys=_client_keys(*_CAMERAS.values()),
    ),
    Embodiment(
        name="aloha_sim",
        robot="simulated ALOHA with one camera",
        cameras={"base_0_rgb": "cam_high"},
        state=_STATE,
        actions=_ACTIONS,
        control_hz=50.0,
        execute_steps=25,
        client_keys=_client_keys("cam_high"),
    ),
    Embodiment(
        name="mobile_aloha",
        robot="Mobile ALOHA",
        cameras=_CAMERAS,
        state=_STATE,
        actions=(
            *_ACTIONS,
            ActionDim("base_forward", "m/s", "relative"),
            ActionDim("base_turn", "rad/s", "relative"),
        ),
        control_hz=50.0,
        execute_steps=25,
        client_keys=_client_keys(*_CAMERAS.values()),
    ),
)
