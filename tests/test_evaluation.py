"""Counting and tabulating what rollouts gave."""

import pytest

from pi0_jax.sim.evaluation import Case, count, table, to_json
from pi0_jax.sim.rollouts import EpisodeResult


def result(episode: int, color: str, success: bool) -> EpisodeResult:
    return EpisodeResult(episode, "reach_arm3", episode, f"reach the {color} block", color, success, 10)


@pytest.fixture
def rows():
    results = [result(0, "red", True), result(1, "red", False), result(2, "blue", True)]
    return count(Case("reach_arm3", "right"), results)


def test_a_row_for_all_prompts_and_one_per_block(rows):
    assert [(row.block, row.successes, row.episodes) for row in rows] == [("all", 2, 3), ("red", 1, 2), ("green", 0, 0), ("blue", 1, 1)]
    assert rows[0].interval == pytest.approx((0.2077, 0.9385), abs=1e-4)  # Wilson's interval of 2 in 3
    assert rows[2].interval == (0.0, 1.0)


def test_the_table_names_robot_condition_and_interval(rows):
    lines = table(rows).splitlines()
    assert lines[1].split() == "reach_arm3 right all 2/3 66.7% 20.8% to 93.9%".split()
    assert lines[3].split() == "reach_arm3 right green 0/0 - 0.0% to 100.0%".split()


def test_json_holds_the_same(rows):
    record = to_json(rows)[0]
    assert (record["robot"], record["condition"], record["block"], record["successes"]) == ("reach_arm3", "right", "all", 2)
