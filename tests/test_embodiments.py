"""Records of robots: what they may say, and that they survive JSON."""

import dataclasses
import json

import pytest

from pi0_jax.embodiments import EMBODIMENTS, ActionDim, Embodiment, StateDim
from pi0_jax.embodiments.record import by_name
from pi0_jax.errors import InputError


def embodiment(**changes) -> Embodiment:
    fields = {
        "name": "arm",
        "robot": "an arm",
        "cameras": {"base_0_rgb": "front"},
        "state": (StateDim("joint_0", "rad"), StateDim("gripper", "1")),
        "actions": (
            ActionDim("joint_0", "rad", "absolute", delta=True),
            ActionDim("gripper", "1", "absolute"),
        ),
        "control_hz": 10.0,
        "execute_steps": 5,
    }
    return Embodiment(**fields | changes)


@pytest.mark.parametrize("name", EMBODIMENTS)
def test_every_record_survives_json(name):
    record = EMBODIMENTS[name]
    assert record.name == name
    assert Embodiment.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_reach_arms_are_told_apart_by_their_joints_alone():
    """Returns a base and a wrist camera, with absolute joint targets that are learnt as deltas.

    The reach world and its data agree on this.
    """
    for joints in (3, 4, 5):
        arm = EMBODIMENTS[f"reach_arm{joints}"]
        assert arm.cameras == {"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"}
        assert len(arm.state) == len(arm.actions) == joints
        assert all(
            dim.unit == "rad" and dim.kind == "absolute" and dim.delta for dim in arm.actions
        )


def test_widowx_commands_changes_of_pose_and_an_absolute_gripper():
    actions = EMBODIMENTS["widowx"].actions
    assert [dim.name for dim in actions] == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert [dim.kind for dim in actions] == ["relative"] * 6 + ["absolute"]
    # what is relative to the last step is not made relative to the chunk's start
    assert not any(dim.delta for dim in actions)


def test_a_name_that_two_records_have_is_refused():
    with pytest.raises(InputError, match="embodiment arm: expected .* differ, found two records"):
        by_name("embodiment", (embodiment(),), (EMBODIMENTS["widowx"], embodiment()))


def test_robots_of_one_laboratory_differ_in_what_they_record():
    """Polarity, units and kinds are those of the record.

    The robots have a stretch without a state, poses that are targets, and a gripper that counts 1
    as closed.
    """
    assert EMBODIMENTS["stretch_nyu_door"].state == ()
    assert EMBODIMENTS["stretch_nyu_door"].cameras == {"left_wrist_0_rgb": "wrist"}
    assert {dim.kind for dim in EMBODIMENTS["franka_toto"].actions} == {"absolute"}
    assert (
        EMBODIMENTS["google_robot"].state[7].one_means == "closed"
        and EMBODIMENTS["google_robot"].actions[6].ends == (-1.0, 1.0)  # open, closed
    )
    assert [dim.name for dim in EMBODIMENTS["xarm_language_table"].actions] == ["dx", "dy"]


def test_records_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EMBODIMENTS["widowx"].control_hz = 10.0


def test_an_unknown_camera_slot_is_named():
    with pytest.raises(InputError, match="arm: camera slot 'head_0_rgb' is unknown; .*base_0_rgb"):
        embodiment(cameras={"head_0_rgb": "front"})


def test_an_unknown_kind_of_action_is_named():
    with pytest.raises(InputError, match="arm: action 'joint_0' .*'velocity'; expected absolute"):
        embodiment(actions=(ActionDim("joint_0", "rad", "velocity"),))


@pytest.mark.parametrize(
    "gripper",
    [
        ActionDim("gripper", "1", "relative", one_means="closed"),  # 1 minus a change
        ActionDim("gripper", "m", "absolute", one_means="closed"),  # 1 minus metres
        ActionDim("gripper", "1", "absolute", low=-1.0, high=1.0, one_means="closed"),
    ],
)
def test_a_gripper_that_is_turned_round_counts_from_0_to_1(gripper):
    with pytest.raises(InputError, match="arm: action 'gripper' .*one_means closed only if"):
        embodiment(actions=(gripper,))


@pytest.mark.parametrize(("field", "value"), [("control_hz", -1.0), ("execute_steps", 0)])
def test_rates_are_positive(field, value):
    with pytest.raises(InputError, match=f"arm: expected control_hz of .*{field} {value}"):
        dataclasses.replace(embodiment(), **{field: value})


@pytest.mark.parametrize(
    "actions",
    [
        (ActionDim("joint_0", "rad", "relative", delta=True),),  # a change already
        (ActionDim("joint_0", "m", "absolute", delta=True),),  # metres minus radians
        # no state 2
        (
            ActionDim("a", "rad", "absolute"),
            ActionDim("b", "1", "absolute"),
            ActionDim("c", "rad", "absolute", delta=True),
        ),
    ],
)
def test_a_delta_needs_an_absolute_action_and_a_state_of_its_unit(actions):
    with pytest.raises(InputError, match=f"'{actions[-1].name}' can be a delta only if"):
        embodiment(actions=actions)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contol_hz": 5}, "embodiment arm: 'contol_hz' is unknown; did you mean 'control_hz'?"),
        (
            {"colour": "red"},
            "embodiment arm: 'colour' is unknown; expected some of name, robot, cameras, state, actions, control_hz",
        ),
        (
            {"state": [{"name": "joint_0", "units": "rad"}]},
            "embodiment arm: state 0: 'units' is unknown; did you mean 'unit'?",
        ),
        (
            {"actions": [{"name": "joint_0", "unit": "rad"}]},
            "embodiment arm: actions 0: kind missing",
        ),
        ({"actions": "joint_0"}, "embodiment arm: actions: expected a list, found str"),
        (
            {"state": ["joint_0"]},
            "embodiment arm: state 0: expected a map of name, unit, low, high, one_means, open, closed, periodic, found str",
        ),
        (
            {"cameras": ["front"]},
            "embodiment arm: cameras: expected a map from text to text, found ['front']",
        ),
        (
            {"execute_steps": 8.5},
            "embodiment arm: expected control_hz of at least 0 and execute_steps of at least 1, found control_hz 10.0",
        ),
        ({"control_hz": "10"}, "found control_hz '10', execute_steps 5"),
        (
            {"client_keys": {"camera": {}, "state": []}},
            "embodiment arm: client_keys: 'camera' is unknown; did you mean 'cameras'?",
        ),
        (
            {"client_keys": {"cameras": {"front": "f"}, "state": ["q"]}},
            "client_keys: state: expected pairs of a key and a number of values",
        ),
        (
            {"client_keys": {"cameras": {"front": "f"}, "state": [["q", 3]]}},
            "embodiment arm: client keys: expected 2 values of state, found 3",
        ),
    ],
)
def test_what_is_wrong_with_a_record_of_ones_own_is_named(changes, said):
    with pytest.raises(InputError) as error:
        Embodiment.from_json(embodiment().to_json() | changes)
    assert said in str(error.value)


def test_a_record_that_is_no_map_or_lacks_much():
    with pytest.raises(InputError, match="expected a map of name, robot, .*, found list"):
        Embodiment.from_json([])
    with pytest.raises(InputError, match="arm: .*, actions, control_hz, execute_steps missing"):
        Embodiment.from_json({"name": "arm", "robot": "an arm"})


def test_deltas_meet_their_state_by_name():
    state = (StateDim("shoulder", "rad"), StateDim("wrist", "rad"), StateDim("lift", "m"))
    actions = (
        ActionDim("wrist", "rad", "absolute", delta=True),
        ActionDim("speed", "m/s", "relative"),
        ActionDim("height", "m", "absolute", delta=True, delta_from="lift"),
        ActionDim("shoulder", "rad", "absolute", delta=True),
    )
    assert embodiment(state=state, actions=actions).delta_states == (1, None, 2, 0)


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ((StateDim("b", "rad"),), ActionDim("a", "rad", "absolute", delta=True)),
        ((StateDim("a", "rad"),), ActionDim("a", "rad", "absolute", delta=True, delta_from="c")),
        ((StateDim("b", "rad"), StateDim("a", "m")), ActionDim("a", "rad", "absolute", delta=True)),
        ((StateDim("a", "rad"),) * 2, ActionDim("a", "rad", "absolute", delta=True)),
    ],
)
def test_a_delta_without_one_state_of_its_name_and_unit_is_refused(state, action):
    expected = f"one state dimension called {action.delta_from or 'a'!r} .* has its unit, rad; the states are "
    with pytest.raises(InputError, match=f"action 'a' can be a delta only if .*{expected}"):
        embodiment(state=state, actions=(action,))


def test_a_stored_record_without_names_keeps_the_place_that_it_was_trained_with():
    """Old records subtract the state at the action's own place, whatever its name.

    They are from before there was delta_from.
    """
    swapped = embodiment(
        state=(StateDim("shoulder", "rad"), StateDim("wrist", "rad")),
        actions=tuple(
            ActionDim(name, "rad", "absolute", delta=True) for name in ("wrist", "shoulder")
        ),
    )
    old = json.loads(json.dumps(swapped.to_json()))
    for dim in old["actions"]:
        del dim["delta_from"]
    assert Embodiment.from_json(old).delta_states == (1, 0)  # as a user writes it
    assert Embodiment.from_json(old, stored=True).delta_states == (0, 1)
    assert Embodiment.from_json(swapped.to_json(), stored=True) == swapped
    again = Embodiment.from_json(Embodiment.from_json(old, stored=True).to_json(), stored=True)
    assert again.delta_states == (0, 1)


@pytest.mark.parametrize(
    ("dim", "said"),
    [
        ({"unit": "m", "periodic": True}, "periodic: expected an angle in rad or deg, found unit 'm'"),
        ({"periodic": "yes"}, "periodic: expected True or False, found 'yes'"),
        ({"periodic": True, "low": 0.0, "high": 3.2}, r"periodic: expected low and high a turn apart \(6.28319 rad\), found 0 and 3.2"),
    ],
)  # fmt: skip
def test_what_cannot_turn_is_refused(dim, said):
    with pytest.raises(InputError, match=f"embodiment arm: state 'a': {said}"):
        embodiment(state=(StateDim(**{"name": "a", "unit": "rad"} | dim),), actions=())


def test_a_change_of_an_angle_does_not_turn_and_a_delta_turns_as_its_state():
    with pytest.raises(InputError, match="action 'a' can be periodic only if it is absolute"):
        embodiment(actions=(ActionDim("a", "rad", "relative", periodic=True),))
    with pytest.raises(InputError, match="expected it to turn as the state 'a' does, found"):
        embodiment(
            state=(StateDim("a", "rad", periodic=True),),
            actions=(ActionDim("a", "rad", "absolute", delta=True),),
        )


@pytest.mark.parametrize("angle", [45, True, "180"])
def test_images_are_turned_by_quarters(angle):
    with pytest.raises(InputError, match="image_rotation: expected 0, 90, 180 or 270 degrees"):
        embodiment(image_rotation=angle)
