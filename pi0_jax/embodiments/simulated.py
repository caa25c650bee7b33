"""Holds the records of simulated arms: of the reach world (pi0_jax/sim), and of Meta-World.

The state of Meta-World's Sawyer arm is what LeRobot's environment gives: the first four of
Meta-World's 39 numbers. Its records are for actions of one control tick and of five.
"""

from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim

_TICK_HZ = 80.0  # Meta-World runs five physics steps of 2.5 ms in a tick


def _reach(name: str, joints: int) -> Embodiment:
    """Returns a record with absolute joint targets at 10 Hz, learnt relative to the joints."""
    return Embodiment(
        name=name,
        robot=f"simulated arm of {joints} joints",
        cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
        state=tuple(StateDim(f"joint_{i}", "rad") for i in range(joints)),
        actions=tuple(
            ActionDim(f"joint_{i}", "rad", "absolute", delta=True) for i in range(joints)
        ),
        control_hz=10.0,
        execute_steps=5,
    )


def _sawyer(name: str, ticks: int, execute_steps: int) -> Embodiment:
    """Returns the record whose actions are held for so many ticks.

    An action moves the hand's target by its numbers, in cm, at every tick. The gripper's number is
    a force: Meta-World's own policies use all of its range, and -1 opens.
    """
    return Embodiment(
        name=name,
        robot=f"Sawyer arm of Meta-World, an action for {ticks} of its 80 ticks a second",
        cameras={"base_0_rgb": "corner2"},
        state=(
            *(StateDim(f"hand_{axis}", "m") for axis in "xyz"),
            StateDim("finger_opening", "1", low=0.0, high=1.0),
        ),
        actions=(
            *(ActionDim(f"hand_d{axis}", "cm", "relative", low=-1.0, high=1.0) for axis in "xyz"),
            ActionDim("finger_force", "1", "absolute", low=-1.0, high=1.0),
        ),
        control_hz=_TICK_HZ / ticks,
        execute_steps=execute_steps,
    )


REACH = (_reach("reach_arm3", 3), _reach("reach_arm4", 4), _reach("reach_arm5", 5))
METAWORLD = (_sawyer("metaworld", 1, 10), _sawyer("metaworld_held", 5, 4))
