"""Statistics of an index are over whole chunks as the loss sees them, in bounded memory.

They are kept beside the index.
"""

import contextlib
import dataclasses
import os
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.data import statistics
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import Index, build_or_open
from pi0_jax.data.rows import Dataset, RawField, Standardised
from pi0_jax.data.statistics import compute, index_statistics, jumps, remarkable_dimensions
from pi0_jax.data.write import ArrayFeature
from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from pi0_jax.preprocess import Robot, normalize
from tests.tiny_data import REACH_STEPS, assert_in_order, reach_step, write_reach

# There is one dimension of every kind: a target learnt as a delta, a change, and an absolute
# gripper that the robot counts the other way.
ARM = Embodiment(
    name="arm",
    robot="an arm",
    cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
    state=(StateDim("x", "mm"), StateDim("y", "mm"), StateDim("opening", "1", one_means="open")),
    actions=(
        ActionDim("x", "mm", "absolute", delta=True),
        ActionDim("dy", "mm", "relative"),
        ActionDim("gripper", "1", "absolute", one_means="closed"),
    ),
    control_hz=5.0,
    execute_steps=1,
)


def kept_where_asked(columns):
    """Keeps frames as the recorded mask says; the last step has no action."""
    keep = columns["steps/keep"].astype(bool)
    return Standardised(
        columns["steps/observation/state"], columns["steps/action"], keep, stop=len(keep) - 1
    )


ROW = dataclasses.replace(
    ROWS["reach_arm3"],
    embodiment=ARM,
    fields={**ROWS["reach_arm3"].fields, "steps/keep": RawField((), "int64")},
    standardise=kept_where_asked,
    held_out=0.0,
)


def make_index(
    data_dir: Path, states: Sequence, actions: Sequence, keep: Sequence, row: Dataset = ROW
) -> Index:
    """Makes an index of episodes with these float[T, 3] states and actions."""
    episodes = []
    for number, episode in enumerate(zip(states, actions, keep, strict=True)):
        steps = []
        for i, (state, action, kept) in enumerate(zip(*episode, strict=True)):
            step = reach_step(number, i)
            step["observation"]["state"] = np.asarray(state, np.float32)
            steps.append(step | {"action": np.asarray(action, np.float32), "keep": int(kept)})
        episodes.append({"steps": steps})
    write_reach(
        data_dir, steps={**REACH_STEPS, "keep": ArrayFeature((), np.int64)}, episodes=episodes
    )
    return build_or_open(row, data_dir, progress=False)


# Two episodes; in the first, step 2 is not drawn. Actions: x, dy, gripper with 1 = open.
STATES = [[[0, 5, 0], [1, 5, 0], [2, 5, 0], [3, 5, 0]], [[7, 6, 1], [8, 9, 1]]]
ACTIONS = [[[10, 1, 1], [20, 2, 1], [30, 3, 0], [99, 99, 0.5]], [[40, 4, 0], [99, 99, 0.5]]]
KEEP = [[1, 1, 0, 0], [1, 0]]


@pytest.fixture
def index(tmp_path) -> Index:
    return make_index(tmp_path, STATES, ACTIONS, KEEP)


def test_states_are_of_the_frames_and_actions_of_their_whole_chunks(index):
    """There are three frames of three steps.

    Past the end the target repeats and the change is 0.
    """
    found = compute(index, 3, progress=False)
    x = [[10 - 0, 20 - 0, 30 - 0], [20 - 1, 30 - 1, 30 - 1], [40 - 7, 40 - 7, 40 - 7]]
    dy = [[1, 2, 3], [2, 3, 0], [4, 0, 0]]
    gripper = [[0, 0, 1], [0, 1, 1], [1, 1, 1]]  # 1 = closed
    values = np.stack([np.ravel(x), np.ravel(dy), np.ravel(gripper)], axis=1).astype(np.float64)
    np.testing.assert_allclose(found.actions.mean, [236 / 9, 15 / 9, 6 / 9], rtol=1e-12)
    np.testing.assert_allclose(found.actions.std, values.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.actions.q01, np.quantile(values, 0.01, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.actions.q99, np.quantile(values, 0.99, axis=0), rtol=1e-12)
    assert found.actions.minimum.tolist() == [10, 0, 0]
    assert found.actions.maximum.tolist() == [33, 4, 1]
    np.testing.assert_allclose(found.state.mean, [8 / 3, 16 / 3, 1 / 3], rtol=1e-12)
    assert found.state.minimum.tolist() == [0, 5, 0]
    assert found.state.maximum.tolist() == [7, 6, 1]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Makes twenty episodes of 2 to 30 steps with gaps between the kept frames.

    It returns them and what was recorded.
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 31, 20)
    states, actions = (
        [rng.normal(50, 2, (length, 3)).astype(np.float32) for length in lengths] for _ in range(2)
    )
    for action in actions:
        action[:, 2] = rng.random(len(action))  # the gripper
    keep = [(rng.random(length) < 0.6) & (np.arange(length) < length - 1) for length in lengths]
    keep[7][:] = False
    return make_index(tmp_path_factory.mktemp("data"), states, actions, keep), states, actions, keep


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize("horizon", [1, 8, 50])
def test_statistics_are_numpys_on_the_raw_arrays(many, horizon, block):
    index, states, actions, keep = many
    chunks, observed = [], []
    for state, action, kept in zip(states, actions, keep, strict=True):
        for t in np.flatnonzero(kept):
            observed.append(state[t])
            for step in range(t, t + horizon):
                x, dy, gripper = action[min(step, len(action) - 2)]
                chunks.append([x - state[t, 0], dy if step <= len(action) - 2 else 0, 1 - gripper])
    found = compute(index, horizon, progress=False, block=block)
    for vector, rows in ((found.actions, chunks), (found.state, observed)):
        rows = np.array(rows, np.float64)
        expected = [rows.mean(axis=0), rows.std(axis=0), *np.quantile(rows, [0.01, 0.99], axis=0)]
        np.testing.assert_allclose(np.stack(vector[:4]), expected, rtol=1e-6)
        extremes = [rows.min(axis=0), rows.max(axis=0)]
        np.testing.assert_array_equal([vector.minimum, vector.maximum], extremes)


def test_memory_does_not_grow_with_the_chunks(many):
    """Chunks of 30,000 steps are more than 50 MB of actions, three dimensions of four bytes."""
    index = many[0]
    assert 30_000 * len(index.frames("train")) * 12 > 50e6
    tracemalloc.start()
    compute(index, 30_000, progress=False, block=1 << 15)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6


def kept_files(index: Index) -> list[Path]:
    return sorted(index.path.glob("*statistics*"))


def assert_same(found, expected):
    np.testing.assert_array_equal(np.array(found.state), np.array(expected.state))
    np.testing.assert_array_equal(np.array(found.actions), np.array(expected.actions))


def test_statistics_are_computed_once(many):
    index = many[0]
    first = index_statistics(index, 8, progress=False)
    assert [file.name.split("-")[:2] for file in kept_files(index)] == [["statistics", "8"]]
    again = Index(index.row, index.path.parents[1], index.path)
    again.state = again.action = again.episodes = None  # nothing that is read can be used
    assert_same(index_statistics(again, 8, progress=False), first)


def test_another_horizon_or_reading_of_the_actions_has_statistics_of_its_own(index):
    """The index is the same, because what an embodiment does is decided when actions are read."""

    def read_as(place: int, **change) -> Index:
        actions = [
            *ARM.actions[:place],
            dataclasses.replace(ARM.actions[place], **change),
            *ARM.actions[place + 1 :],
        ]
        row = dataclasses.replace(ROW, embodiment=dataclasses.replace(ARM, actions=tuple(actions)))
        return Index(row, index.path.parents[1], index.path)

    x, dy, gripper = 10 + 20 + 19 + 29 + 33 + 33, 1 + 2 + 2 + 3 + 4 + 0, 0 + 0 + 0 + 1 + 1 + 1
    by_hand = [
        (index, 1, [(10 + 19 + 33) / 3, 7 / 3, 1 / 3]),
        (index, 2, [x / 6, dy / 6, gripper / 6]),
        (read_as(0, delta=False), 1, [(10 + 20 + 40) / 3, 7 / 3, 1 / 3]),
        (read_as(2, one_means="open"), 1, [(10 + 19 + 33) / 3, 7 / 3, 2 / 3]),
    ]
    for _ in range(2):
        for one, horizon, mean in by_hand:
            np.testing.assert_allclose(
                index_statistics(one, horizon, progress=False).actions.mean, mean, rtol=1e-12
            )
    assert len(kept_files(index)) == 4


@pytest.mark.parametrize(
    "damage", [lambda text: text[:100], lambda text: "{}", lambda text: text.replace("10.0", "NaN")]
)
def test_damaged_statistics_are_refused_with_what_to_do(index, damage):
    index_statistics(index, 3, progress=False)
    (file,) = kept_files(index)
    file.write_text(damage(file.read_text()))
    with pytest.raises(InputError, match=rf"^{file}: .*; delete the file"):
        index_statistics(index, 3, progress=False)
    file.unlink()
    index_statistics(index, 3, progress=False)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Makes a folder read-only, also for root, which becomes another user meanwhile."""
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_to_keeps_no_statistics(recwarn, capfd):
    with tempfile.TemporaryDirectory() as data_dir:
        Path(data_dir).chmod(0o755)  # tmp_path would be closed to others
        index = make_index(Path(data_dir), STATES, ACTIONS, KEEP)
        capfd.readouterr()
        with read_only(index.path):
            found = index_statistics(index, 3)
        assert kept_files(index) == []
        assert_same(index_statistics(index, 3), found)
        assert len(kept_files(index)) == 1
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_no_training_frames_is_an_error(tmp_path):
    index = make_index(tmp_path, STATES, ACTIONS, [[0] * 4, [0] * 2])
    with pytest.raises(InputError, match="reach_arm3: expected training frames .*, found none"):
        index_statistics(index, 3)


def robot_of(state: np.ndarray, actions: np.ndarray) -> Robot:
    vectors = (normalize.accumulate([rows]) for rows in (state, actions))
    return Robot(ARM, normalize.Statistics(*vectors))


def test_dimensions_that_hardly_vary_are_reported_with_their_value():
    ramp = np.linspace(0, 1, 1000)
    state = np.stack([ramp, np.full(1000, 0.25), ramp], axis=1)
    actions = np.stack([2 * ramp - 1, 3 * ramp, np.r_[np.zeros(5), np.ones(995)]], axis=1)
    robot = robot_of(state, actions)
    still = ("my_arm: state y", "mean 0.25 mm, standard deviation 0")
    (line,) = remarkable_dimensions("my_arm", robot, "zscore")
    assert_in_order(line, *still)
    state, gripper = remarkable_dimensions("my_arm", robot, "quantile")
    assert_in_order(state, *still, "98% within 0.25 to 0.25")
    place = ("my_arm: actions gripper", "mean 0.995, standard deviation 0.07")
    assert_in_order(gripper, *place, "98% within 1 to 1")


def test_one_wild_value_that_makes_the_spread_is_reported():
    ramp = np.linspace(0, 1, 1000)
    state = np.stack([ramp, ramp, np.r_[np.linspace(0, 1, 999), 1e6]], axis=1)
    robot = robot_of(state, np.random.default_rng(0).normal(size=(99, 3)))
    (line,) = remarkable_dimensions("my_arm", robot, "zscore")
    ranges = ("98% within 0.01001 to 0.990992", "all within 0 to 1e+06")
    assert_in_order(line, "my_arm: state opening", "mean 1000.5", *ranges)


@pytest.mark.parametrize("mode", ["zscore", "quantile"])
def test_a_value_far_beyond_the_others_is_reported(mode):
    state = np.tile(np.linspace(0, 1, 100_000)[:, None], 3)
    state[7, 0] = 150
    robot = robot_of(state, state[100:])
    (line,) = remarkable_dimensions("my_arm", robot, mode)
    assert_in_order(line, "my_arm: state x", "0.01001 to 0.99001 mm in 98%", "0 to 150 mm")


def test_a_difference_that_float32_does_not_hold_is_named(tmp_path):
    robot = dataclasses.replace(
        ARM,
        state=(StateDim("x", "1"), *ARM.state[1:]),
        actions=(ActionDim("x", "1", "absolute", delta=True), *ARM.actions[1:]),
    )
    states, actions = (
        [STATES[0], [[-3, 6, 1], [8, 9, 1]]],
        [ACTIONS[0], [[3, 4, 0], [99, 99, 0.5]]],
    )
    index = make_index(tmp_path, states, actions, KEEP, dataclasses.replace(ROW, embodiment=robot))
    # a new index refuses such numbers; one of before may hold them
    first = int(index.episodes["start"][1])
    index.state, index.action = np.array(index.state), np.array(index.action)
    index.state[first, 0], index.action[first, 0] = -3e38, 3e38
    with np.errstate(over="ignore"), pytest.raises(InputError) as caught:
        index_statistics(index, 1)
    place = ("reach_arm3", "episode 1", "step 0", "action x")
    assert_in_order(str(caught.value), *place, "expected a float32", "found a larger")


# There is a heading that turns and is told as a target; a wrist, learnt as a delta and named in
# another place; and an elbow that is not said to turn.
TURNING = Embodiment(
    name="turning",
    robot="an arm",
    cameras={"base_0_rgb": "base", "left_wrist_0_rgb": "wrist"},
    state=(
        StateDim("wrist", "rad", periodic=True),
        StateDim("elbow", "rad"),
        StateDim("heading", "rad", periodic=True),
    ),
    actions=(
        ActionDim("elbow", "rad", "absolute", delta=True),
        ActionDim("wrist", "rad", "absolute", delta=True, periodic=True),
        ActionDim("heading", "rad", "absolute", periodic=True),
    ),
    control_hz=5.0,
    execute_steps=1,
)
TURNING_ROW = dataclasses.replace(ROW, embodiment=TURNING)
# state: wrist, elbow, heading; action: elbow, wrist, heading
TURNS_STATE = [[[3.0, 0, 3.1], [3.1, 1, -3.1], [-3.1, 0, 3.0], [-3.0, 1, 3.0]]]
TURNS_ACTION = [[[0.5, 3.1, -3.1], [0.5, -3.1, 3.0], [0.5, -3.0, 3.1], [0, 0, 0]]]
TURN = 2 * np.pi


def test_angles_that_turn_have_the_statistics_of_the_short_way(tmp_path):
    index = make_index(tmp_path, TURNS_STATE, TURNS_ACTION, [[1, 1, 1, 0]], TURNING_ROW)
    found = compute(index, 1, progress=False)
    near = np.array([[3.0, 0, 3.1], [3.1, 1, TURN - 3.1], [TURN - 3.1, 0, 3.0]])
    np.testing.assert_allclose(found.state.mean, near.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.state.std, near.std(axis=0), atol=1e-6)
    # Elbow and wrist are minus the states of their names.
    actions = np.array([[0.5, 0.1, TURN - 3.1], [-0.5, TURN - 6.2, 3.0], [0.5, 0.1, 3.1]])
    np.testing.assert_allclose(found.actions.mean, actions.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.actions.std, actions.std(axis=0), atol=1e-6)
    assert jumps(index, 1, found) == []


def test_angles_that_jump_and_are_not_said_to_turn_are_told_with_their_place(tmp_path):
    plain = dataclasses.replace(
        TURNING,
        state=tuple(dataclasses.replace(dim, periodic=False) for dim in TURNING.state),
        actions=tuple(dataclasses.replace(dim, periodic=False) for dim in TURNING.actions),
    )
    states = [[[0.0, 0, 0]] * 4, *TURNS_STATE]
    actions = [[[0.0, 0, 0]] * 4, *TURNS_ACTION]
    row = dataclasses.replace(TURNING_ROW, embodiment=plain)
    index = make_index(tmp_path, states, actions, [[1, 1, 1, 0]] * 2, row)
    lines = jumps(index, 1, compute(index, 1, progress=False))
    for line, angle, change, step in zip(
        lines,
        ("action wrist", "state wrist", "state heading", "action heading"),
        ("-6.2 rad from the state", *["-6.2 rad from the step"] * 2, "+6.1 rad from the step"),
        (1, 2, 1, 1),
        strict=True,
    ):
        place = f"episode 1 of its index, step {step}"
        assert_in_order(line, "reach_arm3", angle, change, place, "half a turn", "periodic")


def test_nothing_moves_from_one_episode_to_the_next(tmp_path):
    states = [[[2.0, 0, 0]] * 4, [[-2.0, 0, 0]] * 4]
    plain = dataclasses.replace(TURNING, state=(StateDim("wrist", "rad"), *TURNING.state[1:]), actions=TURNING.actions[:1])  # fmt: skip
    row = dataclasses.replace(TURNING_ROW, embodiment=plain, standardise=first_action)
    index = make_index(tmp_path, states, states, [[1, 1, 1, 0]] * 2, row)
    assert jumps(index, 1, compute(index, 1, progress=False)) == []


def first_action(columns):
    result = kept_where_asked(columns)
    return result._replace(action=result.action[:, 1:2])


def test_a_turn_or_another_state_has_statistics_of_its_own_and_other_records_keep_their_names(
    tmp_path,
):
    """The name of the file stays as it is for a record that says nothing new."""
    wrist, elbow, heading = TURNING.state
    actions = TURNING.actions
    robots = (
        TURNING,
        dataclasses.replace(TURNING, actions=(actions[1], actions[0], actions[2])),
        dataclasses.replace(
            TURNING,
            state=(wrist, dataclasses.replace(elbow, periodic=True), heading),
            actions=(dataclasses.replace(actions[0], periodic=True), *actions[1:]),
        ),
    )
    names = {statistics._digest(FakeIndex(robot)) for robot in robots}
    assert len(names) == 3
    assert statistics._digest(FakeIndex(ROWS["reach_arm3"].embodiment)) == "39c31d8d8d424b67"


class FakeIndex:
    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
