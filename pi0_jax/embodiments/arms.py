"""Holds the records of single arms of the public datasets, other than Frankas and the WidowX.

The number of steps executed per chunk is about 0.8 s of it (appendix D).
"""

from pi0_jax.embodiments.dims import EULER, POSE_CHANGE, POSE_TARGET, POSITION, gripper, joints
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim

ARMS = (
    Embodiment(
        name="xarm_ucsd",
        robot="xArm 7 (University of California, San Diego)",
        cameras={"base_0_rgb": "base"},
        state=joints(7),
        actions=(*POSE_TARGET, gripper("open")),
        control_hz=2.0,
        execute_steps=2,
    ),
    Embodiment(
        name="edan",
        robot="DLR EDAN, a wheelchair with an arm",
        cameras={"base_0_rgb": "base"},
        # Its angles come in another order than other robots': about z, then x, then y.
        state=(
            *POSITION,
            *(StateDim(f"rotation_{axis}", "rad") for axis in "zxy"),
            StateDim("gripper", "1", one_means="closed"),
        ),
        actions=(
            *POSE_CHANGE[:3],
            *(ActionDim(f"drotation_{axis}", "rad", "relative") for axis in "zxy"),
            gripper("closed"),
        ),
        control_hz=5.0,
        execute_steps=4,
    ),
    Embodiment(
        name="fanuc_mate",
        robot="Fanuc Mate (University of California, Berkeley)",
        cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
        state=(*joints(6), StateDim("gripper", "1", one_means="closed")),
        actions=(*POSE_CHANGE, gripper("closed")),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="stretch_cmu",
        robot="Hello Stretch (Carnegie Mellon University)",
        cameras={"base_0_rgb": "base"},
        state=(*POSITION, StateDim("gripper", "1", one_means="open")),
        actions=(*POSE_CHANGE, gripper("open")),
        control_hz=10.0,
        execute_steps=8,
    ),
    Embodiment(
        name="stretch_dobbe",
        robot="Hello Stretch, or a stick with its gripper (Dobb-E)",
        cameras={"left_wrist_0_rgb": "wrist"},
        state=(*POSITION, *EULER, StateDim("gripper", "1", one_means="open")),
        actions=(*POSE_CHANGE, gripper("open")),
        control_hz=3.75,
        execute_steps=3,
    ),
)
