"""Holds the records of Meta-World's Sawyer arm, for actions of one control tick and of five.

Its state is what LeRobot's environment gives: the first four of Meta-World's 39 numbers.
"""

from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim

_TICK_HZ = 80.0  # Meta-World runs five physics steps of 2.5 ms in a tick


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


METAWORLD = (_sawyer("metaworld", 1, 10), _sawyer("metaworld_held", 5, 4))
