"""openpi's norm_stats.json is read right; here it is written out by hand."""

import json

import numpy as np
import pytest

from pi0_jax.convert import openpi
from pi0_jax.convert.metadata import RobotRecord, without_padding
from pi0_jax.embodiments import EMBODIMENTS, ActionDim, Embodiment, StateDim
from pi0_jax.errors import InputError
from pi0_jax.preprocess import Layout, Robot, check_robot, normalize

STATE = {"mean": [0.5, -1.0], "std": [0.25, 2.0], "q01": [0.0, -4.0], "q99": [1.0, 4.0]}
ACTIONS = {"mean": [3.0], "std": [0.5], "q01": None, "q99": None}


def write(tmp_path, **parts):
    file = openpi.statistics_file(tmp_path, "trossen/arm")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"norm_stats": {"state": STATE, "actions": ACTIONS} | parts}))
    return file


def load(file, state_dims, action_dims):
    statistics = openpi.read_statistics(json.loads(file.read_text()), str(file))
    state = tuple(StateDim(f"state_{i}", "m") for i in range(state_dims))
    actions = tuple(ActionDim(f"action_{i}", "m", "absolute") for i in range(action_dims))
    robot = Embodiment("arm", "an arm", {"base_0_rgb": "front"}, state, actions, 20.0, 5)
    return without_padding(RobotRecord(statistics, robot), str(file)).statistics


def test_a_file_is_read_without_what_it_does_not_say(tmp_path):
    file = write(tmp_path)
    assert file == tmp_path / "assets" / "trossen" / "arm" / "norm_stats.json"
    state, actions = load(file, 2, 1)
    assert [values.tolist() for values in state[:4]] == [
        [0.5, -1.0],
        [0.25, 2.0],
        [0.0, -4.0],
        [1.0, 4.0],
    ]
    assert [values.tolist() for values in actions[:2]] == [[3.0], [0.5]]
    assert actions[2:] == (None, None, None, None) and state[4:] == (None, None)
    assert normalize.normalize(np.array([3.25]), actions, "zscore") == pytest.approx(
        [0.5], rel=1e-5
    )


@pytest.mark.parametrize("std", [0.0, 1.0])
def test_padding_to_the_models_dimension_is_taken_off(tmp_path, std):
    padded = {
        "mean": [3.0, 0.0, 0.0],
        "std": [0.5, std, std],
        "q01": [2.0, 0.0, 0.0],
        "q99": [4.0, 0.0, 0.0],
    }
    _, actions = load(write(tmp_path, actions=padded), 2, 1)
    assert [values.tolist() for values in actions[:4]] == [[3.0], [0.5], [2.0], [4.0]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"state": STATE | {"mean": [0.5], "std": [1.0], "q01": None, "q99": None}},
         "state: expected at least the robot's 2 dimensions, found 1"),
        ({"actions": ACTIONS | {"mean": [3.0, 0.1], "std": [0.5, 1.0]}},
         r"actions\[1\]: expected padding with mean 0 and std 0 or 1 after the robot's 1 dimensions, found mean 0.1 and std 1"),
        ({"actions": ACTIONS | {"mean": [3.0, 0.0], "std": [0.5, 0.5]}}, r"actions\[1\]: expected padding .*, found mean 0 and std 0.5"),
        ({"actions": {"mean": [3.0]}}, "statistics lack actions.std"),
        ({"actions": None}, "statistics lack actions.mean, .*"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, parts, message):
    file = write(tmp_path, **parts)
    with pytest.raises(InputError, match=f"^{file}: {message}$"):
        load(file, 2, 1)


@pytest.mark.parametrize("content", ['{"state": {}}', '{"norm_stats": 3}', '{"norm_stats": {}}'])
def test_another_format_is_refused(tmp_path, content):
    file = tmp_path / "norm_stats.json"
    file.write_text(content)
    with pytest.raises(InputError, match=f"^{file}: (expected .*, found|.* lack state)") as error:
        load(file, 2, 1)
    assert "\n" not in str(error.value)


def test_ours_are_written_as_theirs_and_come_back(tmp_path):
    ours = normalize.Statistics(
        *(normalize.accumulate([np.random.default_rng(n).normal(size=(50, n))]) for n in (3, 4))
    )
    file = openpi.statistics_file(tmp_path, "arm")
    openpi.write_statistics(file, ours)
    parts = json.loads(file.read_text())["norm_stats"]
    assert parts.keys() == {"state", "actions"}
    assert parts["state"].keys() == parts["actions"].keys() == {"mean", "std", "q01", "q99"}
    for back, known in zip(load(file, 3, 4), ours, strict=True):
        np.testing.assert_array_equal(np.stack(back[:4]), np.stack(known[:4]))
        assert back[4:] == (None, None)


def test_quantile_normalisation_without_quantiles_is_refused_by_name(tmp_path):
    three = {"mean": [0.0] * 3, "std": [1.0] * 3, "q01": None, "q99": None}
    statistics = load(write(tmp_path, state=three, actions=three), 3, 3)
    robot = Robot(EMBODIMENTS["reach_arm3"], statistics)
    layout = Layout(
        (),
        image_size=32,
        action_dim=8,
        max_tokens=12,
        normalization="zscore",
        normalization_clip=0.0,
    )
    check_robot(robot, layout)
    with pytest.raises(InputError, match="^reach_arm3: quantile .*expected state .*found none"):
        check_robot(robot, layout._replace(normalization="quantile"))
