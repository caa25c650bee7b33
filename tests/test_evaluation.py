"""The results of rollouts are counted and tabulated."""

import json

import pytest

from pi0_jax.sim.evaluation import Case, count, save, table
from pi0_jax.sim.worlds import EpisodeResult


def result(episode: int, group: str, success: bool) -> EpisodeResult:
    return EpisodeResult(
        episode, "reach_arm3", episode, f"reach the {group} block", group, success, 10
    )


@pytest.fixture
def rows():
    results = [result(0, "red", True), result(1, "red", False), result(2, "blue", True)]
    return count(Case("reach_arm3", "right"), results)


def test_a_row_for_all_episodes_and_one_per_group(rows):
    assert [(row.group, row.successes, row.episodes) for row in rows] == [
        ("all", 2, 3),
        ("blue", 1, 1),
        ("red", 1, 2),
    ]
    # Wilson's interval of 2 in 3
    assert rows[0].interval == pytest.approx((0.2077, 0.9385), abs=1e-4)
    (alone,) = count(Case("reach_arm3", "right"), [result(0, "red", True)] * 2)
    assert alone.group == "all"


def test_the_table_names_robot_condition_and_interval(rows):
    lines = table(rows).splitlines()
    assert lines[1].split() == "reach_arm3 right all 2/3 66.7% 20.8% to 93.9%".split()
    assert lines[2].split() == "reach_arm3 right blue 1/1 100.0% 20.7% to 100.0%".split()


def test_json_holds_the_same(rows, tmp_path):
    save(tmp_path, rows, checkpoint="runs/reach", seed=3)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert (record["checkpoint"], record["seed"], len(record["rows"])) == ("runs/reach", 3, 3)
    first = {"robot": "reach_arm3", "condition": "right", "group": "all", "successes": 2}
    assert first.items() <= record["rows"][0].items()
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]
