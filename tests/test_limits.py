"""What lies outside of the data or of a robot's hard limits is counted, told, cut off or refused.

What is absurd is always refused.
"""

import dataclasses
import logging

import numpy as np
import pytest

from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError, NotFiniteError
from pi0_jax.policy.limits import Limits
from pi0_jax.preprocess import Robot, normalize
from tests import policies

# In the data the joint and its action go from -1 to 1 rad, and lift from 0 to 0.2 m. The joint is
# learnt as a delta of -0.1 to 0.1.
ARM = Embodiment(
    name="arm",
    robot="an arm",
    cameras={"base_0_rgb": "base"},
    state=(StateDim("joint", "rad"), StateDim("wrist", "rad", periodic=True)),
    actions=(
        ActionDim("joint", "rad", "absolute", delta=True, limits=(-1.2, 1.2)),
        ActionDim("lift", "m", "absolute"),
    ),
    control_hz=10.0,
    execute_steps=1,
)


def statistics(low, high) -> normalize.VectorStatistics:
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    return normalize.VectorStatistics((low + high) / 2, (high - low) / 4, low, high, low, high)


ROBOT = Robot(
    ARM, normalize.Statistics(statistics([-1, -3], [1, 3]), statistics([-0.1, 0], [0.1, 0.2]))
)
INSIDE = np.float32([[0.5, 3.1]])


def chunk(*rows) -> np.ndarray:
    return np.float32(rows)[None]


def test_what_the_data_had_is_inside_to_the_bit():
    actions = chunk([0.6, 0.2], [0.4, 0.0])
    limits = Limits(ROBOT, "refuse")
    assert limits.check_states(INSIDE) == [[]]
    found, outside = limits.check_actions(actions, INSIDE)
    assert outside == [[]] and limits.counts == {}
    np.testing.assert_array_equal(found, actions)


def test_the_margin_is_a_quarter_of_the_range():
    limits = Limits(ROBOT)
    assert limits.check_states(np.float32([[1.49, 0]])) == [[]]
    ((one,),) = limits.check_states(np.float32([[1.51, 0]]))
    assert (one.part, one.name, one.low, one.high, one.hard) == ("state", "joint", -1.5, 1.5, False)
    assert str(one) == "state 'joint': 1.51 is outside of its data: expected -1.5 to 1.5"


def test_an_angle_that_turns_has_no_range_in_the_data():
    assert Limits(ROBOT).check_states(np.float32([[0, 3.14], [0, -3.14]])) == [[], []]


@pytest.mark.parametrize("choice", ["tell", "clamp", "refuse"])
def test_a_delta_is_held_against_deltas(choice):
    """A delta of 0.15 is the farthest; beside a state of 0.5 that is 0.65."""
    actions, limits = chunk([0.6, 0.1], [0.7, 0.1], [0.8, 0.1]), Limits(ROBOT, choice)
    if choice == "refuse":
        with pytest.raises(InputError, match=r"observation 0 \(arm\): action 'joint': 0.3 is out"):
            limits.check_actions(actions, INSIDE)
        return
    found, ((one,),) = limits.check_actions(actions, INSIDE)
    assert (one.times, round(one.worst, 5)) == (2, 0.3)
    expected = [0.6, 0.7, 0.8] if choice == "tell" else [0.6, 0.65, 0.65]
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(found[0, :, 1], actions[0, :, 1])


def test_what_is_cut_off_stays_in_the_robots_turn():
    """From 2.9 to -3.13 rad is 0.25 further; cut to 0.15 it is 3.05 in the robot's turn, not -3.23."""
    turning = dataclasses.replace(
        ARM,
        state=(StateDim("joint", "rad", periodic=True), ARM.state[1]),
        actions=(ActionDim("joint", "rad", "absolute", delta=True, periodic=True), ARM.actions[1]),
    )
    limits = Limits(ROBOT._replace(embodiment=turning), "clamp")
    found, _ = limits.check_actions(chunk([-3.13, 0.1]), np.float32([[2.9, 0]]))
    np.testing.assert_allclose(found[0, 0], [3.05, 0.1], atol=1e-5)


@pytest.mark.parametrize("choice", ["tell", "clamp"])
def test_hard_limits_are_cut_off_whatever_is_chosen(choice):
    state = np.float32([[1.15, 0]])
    found, (outside,) = Limits(ROBOT, choice).check_actions(chunk([1.25, 0.1]), state)
    np.testing.assert_allclose(found[0, 0], [1.2, 0.1])
    assert [(one.name, one.hard) for one in outside] == [("joint", True)]
    assert found.dtype == np.float32


def test_what_is_absurd_is_refused_whatever_is_chosen():
    for state, name in (
        ([1e38, 0], "joint"),
        ([0, 5000], "wrist"),
        ([np.rad2deg(1.2), 0], "joint"),
    ):
        with pytest.raises(InputError, match=f"observation 1 .arm.: state '{name}' is .* rad"):
            Limits(ROBOT).check_states(np.float32([[0, 0], state]))


def test_what_is_told_is_counted_and_logged_at_each_power_of_ten(caplog):
    limits = Limits(ROBOT)
    with caplog.at_level(logging.WARNING):
        for _ in range(25):
            limits.check_states(np.float32([[1.6, 0]]))
    assert limits.counts == {("state", "joint"): 25}
    assert [record.message.partition("(")[2] for record in caplog.records] == ["", "10 so far)"]


def test_statistics_of_others_have_percentiles_only():
    vector = statistics([-1, -3], [1, 3])._replace(minimum=None, maximum=None)
    limits = Limits(ROBOT._replace(statistics=ROBOT.statistics._replace(state=vector)))
    assert limits.check_states(np.float32([[4, 0]])) == [[]]
    ((one,),) = limits.check_states(np.float32([[5, 0]]))
    assert (one.low, one.high) == (-4.5, 4.5)


def test_limits_travel_with_the_record_and_are_checked():
    assert Embodiment.from_json(ARM.to_json()) == ARM
    plain = ARM.to_json()
    plain["actions"][0]["limits"] = [-1.2, 1.2]  # as JSON has it
    assert Embodiment.from_json(plain) == ARM
    for wrong in ((1.2, -1.2), (0.0,), (0.0, np.inf)):
        with pytest.raises(InputError, match="action 'joint'.*limits"):
            dataclasses.replace(ARM, actions=(dataclasses.replace(ARM.actions[0], limits=wrong),))
    with pytest.raises(InputError, match="limits: expected tell, clamp, refuse, found 'no'"):
        Limits(ROBOT, "no")


def test_a_policy_tells_refuses_and_never_answers_with_what_is_not_finite():
    policy = policies.policy("reach_arm3", num_steps=1)
    seen = policies.observation("reach_arm3")
    assert policy(seen)["outside"] == []
    vector = policy.robots["reach_arm3"].statistics.state
    far = vector.maximum.astype(np.float32) + np.float32([3, 0, 0])
    assert [one.partition(":")[0] for one in policy({**seen, "state": far})["outside"]][:1] == [
        "state 'joint_0'"
    ]
    with pytest.raises(InputError, match="state 'joint_0' is 1e"):
        policy({**seen, "state": np.float32([1e38, 0, 0])})
    with pytest.raises(NotFiniteError, match="joint_0"):
        policy(seen, noise=np.full((10, 16), np.nan, np.float32))
