"""Holds the records of the arms of the reach world (pi0_jax/sim)."""

from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim


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


REACH = (_reach("reach_arm3", 3), _reach("reach_arm4", 4), _reach("reach_arm5", 5))
