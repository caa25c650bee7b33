"""A gripper's command is right as recorded, in an index (1 = open), and as the robot takes it."""

import dataclasses
import json

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.grippers import CLOSED_IS_1, RecordedGripper, from_openings, to_openings
from pi0_jax.data.index.version import describe_difference
from pi0_jax.data.rows import as_recorded, row_from_mapping, row_version
from pi0_jax.data.rule_source import record_rule
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from tests.my_robot import MY_ROBOT
from tests.spec_data import index_from_spec

SIGNED = RecordedGripper(open=-1.0, closed=1.0)
WIDTH = RecordedGripper(open=0.08, closed=0.0)


def openings(numbers, recorded, **changes):
    action = np.array(numbers, np.float32)[:, None]
    how = {"read": len(action), "where": "dataset x: episode 3", "names": {0: "gripper"}} | changes
    return to_openings(action, {0: recorded}, **how)[:, 0]


@pytest.mark.parametrize(
    ("recorded", "numbers", "opening"),
    [
        (RecordedGripper(1.0, 0.0), [1, 0.25, 0], [1, 0.25, 0]),
        (CLOSED_IS_1, [1, 0.25, 0], [0, 0.75, 1]),
        (SIGNED, [-1, 1, 0.5], [1, 0, 0.25]),
        (WIDTH, [0.08, 0.02, 0], [1, 0.25, 0]),
        (RecordedGripper(0, 255), [0, 255, 51], [1, 0, 0.8]),
        (RecordedGripper(1.0, 0.0, overshoot=0.1), [1.05, -0.05, 0.5], [1, 0, 0.5]),
    ],
)
def test_what_was_recorded_becomes_an_opening(recorded, numbers, opening):
    np.testing.assert_allclose(openings(numbers, recorded), opening, atol=1e-7)


def test_a_number_beyond_the_ends_is_named():
    message = (
        r"^dataset x: episode 3: step 1: action dimension 0 \(gripper\): expected a gripper recorded"
        r" between -1 \(open\) and 1 \(closed\), found 57$"
    )
    with pytest.raises(InputError, match=message):
        openings([1, 57], SIGNED)
    openings([1, 57], SIGNED, read=1)  # of a step that is never read
    with pytest.raises(InputError, match="found 1.2$"):
        openings([1.2], RecordedGripper(1.0, 0.0, overshoot=0.1))


def robot(gripper: ActionDim) -> Embodiment:
    return Embodiment("arm", "an arm", {"base_0_rgb": "front"}, (), (gripper,), 10.0, 1)


@pytest.mark.parametrize(
    ("gripper", "open_half_closed"),
    [
        (ActionDim("gripper", "1", "absolute"), [1, 0.5, 0]),  # says nothing: nothing is turned
        (ActionDim("gripper", "1", "absolute", one_means="open"), [1, 0.5, 0]),
        (ActionDim("gripper", "1", "absolute", one_means="closed"), [0, 0.5, 1]),
        (ActionDim("gripper", "1", "absolute", open=-1.0, closed=1.0), [-1, 0, 1]),
        (ActionDim("gripper", "m", "absolute", open=0.08, closed=0.0), [0.08, 0.04, 0]),
    ],
)
def test_an_opening_becomes_what_the_robot_takes(gripper, open_half_closed):
    actions = np.array([[1], [0.5], [0]], np.float32)
    from_openings(actions, robot(gripper))
    np.testing.assert_allclose(actions[:, 0], open_half_closed, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"open": 1.0}, "'gripper': expected open and closed, two numbers that differ, found open 1.0 and closed None"),
        ({"open": 1.0, "closed": 1.0}, "'gripper': expected open and closed, two numbers that differ"),
        ({"open": float("nan"), "closed": 1.0}, "'gripper': open: expected a finite number, found nan"),
        ({"open": "1", "closed": 0.0}, "'gripper': open: expected a finite number, found '1'"),
        ({"open": 1.0, "closed": 0.0, "one_means": "open"}, "'gripper': expected one_means, or open and closed, found both"),
        ({"open": 1.0, "closed": 0.0, "high": 1.0}, "'gripper' can have open and closed only if it is absolute and without low and high"),
        ({"open": 1.0, "closed": 0.0, "kind": "relative"}, "'gripper' can have open and closed only if it is absolute"),
    ],
)  # fmt: skip
def test_a_record_that_says_no_two_ends_is_refused(changes, said):
    fields = {"name": "gripper", "unit": "1", "kind": "absolute"} | changes
    with pytest.raises(InputError, match=f"^embodiment arm: action {said}"):
        robot(ActionDim(**fields))


def test_which_way_a_state_counts_follows_from_its_ends():
    assert StateDim("gripper", "m", open=0.0, closed=0.8).larger_is == "closed"
    assert StateDim("gripper", "m", one_means="open").larger_is == "open"
    assert StateDim("gripper", "m", one_means="open").ends is None  # 1 m is no end
    assert StateDim("gripper", "1").larger_is == ""


PLAIN = {field: value for field, value in MY_ROBOT.items() if field != "standardise"}


def test_without_a_rule_a_gripper_was_recorded_as_the_robot_takes_it():
    """my_robot says that 1 is closed, in state and action, and the files are read so.

    They were once taken for 1 = open.
    """
    row = row_from_mapping("my_robot", PLAIN)
    assert row.recorded_grippers == {6: CLOSED_IS_1}
    ruled = row_from_mapping("my_robot", MY_ROBOT)
    assert ruled.recorded_grippers == {6: RecordedGripper(1.0, 0.0)}  # what a rule gives


def test_polarity_is_plain_data_of_the_row():
    said = {"grippers": {"gripper": {"open": -1, "closed": 1}}}
    assert row_from_mapping("my_robot", PLAIN | said).recorded_grippers == {6: SIGNED}
    assert row_from_mapping("my_robot", MY_ROBOT | said).recorded_grippers == {6: SIGNED}


@pytest.mark.parametrize(
    ("grippers", "said"),
    [
        ({"hand": {"open": 1, "closed": 0}}, "grippers: expected actions of my_robot that say .*, which are gripper; found 'hand'$"),
        ({"joint_0": {"open": 1, "closed": 0}}, "found 'joint_0'$"),
        ({"gripper": {"open": 1, "closed": 1}}, "grippers: gripper: expected open and closed that differ"),
        ({"gripper": {"open": 1, "closed": 0, "overshoot": 2}}, r"an overshoot in \[0, 0.5\]"),
        ({"gripper": {"open": True, "closed": 0}}, "grippers: gripper: expected finite numbers"),
        ({"gripper": {"opened": 1, "closed": 0}}, "opened"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_rows_grippers_is_named(grippers, said):
    with pytest.raises(InputError, match=f"^dataset row my_robot: .*{said}"):
        row_from_mapping("my_robot", PLAIN | {"grippers": grippers})


def test_an_index_is_named_by_how_its_grippers_were_recorded_and_by_nothing_new_otherwise():
    def version(**changes):
        return row_version(row_from_mapping("my_robot", PLAIN | changes))

    def with_gripper(**changes):
        robot = PLAIN["embodiment"]
        gripper = {"name": "gripper", "unit": "1", "kind": "absolute"} | changes
        return version(embodiment=robot | {"actions": [*robot["actions"][:-1], gripper]})

    assert "grippers" not in with_gripper(one_means="open")  # as such indices were always named
    assert "grippers" not in row_version(row_from_mapping("my_robot", MY_ROBOT))
    assert version()["grippers"] == [[6, 0.0, 1.0, 0.0]]
    turned, plain = (
        {"format": 4, "standardise": v, "files": {}}
        for v in (version(), with_gripper(one_means="open"))
    )
    assert describe_difference(turned, plain) in (
        "the row's grippers changed since",
        "the row's actions changed since",
    )


def test_a_checkpoints_memory_of_no_rule_is_no_rule():
    stored = json.loads(json.dumps(PLAIN | {"standardise": record_rule(as_recorded, "here")}))
    assert row_from_mapping("my_robot", stored).standardise is as_recorded
    assert row_version(row_from_mapping("my_robot", stored)) == row_version(
        row_from_mapping("my_robot", PLAIN)
    )


def test_a_damaged_gripper_is_refused_with_its_episode(tmp_path):
    action = np.zeros((3, 7))
    action[2, 6] = 128
    where = (
        r"^dataset libero_goal_no_noops: .*episode 0.*: step 2: action dimension 6 \(gripper\): "
    )
    with pytest.raises(InputError, match=f"{where}.*, found 128$"):
        index_from_spec(ROWS["libero_goal_no_noops"], tmp_path, [{"steps/action": action}])


def test_steps_that_a_rule_drops_may_hold_anything(tmp_path):
    """An episode of which nothing is drawn is not held to a range, as in other dimensions."""

    def nothing(columns):
        return as_recorded(columns)._replace(keep=np.zeros(3, bool))

    row = dataclasses.replace(ROWS["libero_goal_no_noops"], standardise=nothing)
    action = np.full((3, 7), 128.0)
    assert index_from_spec(row, tmp_path, [{"steps/action": action}]).steps == 3
