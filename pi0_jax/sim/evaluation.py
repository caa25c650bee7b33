"""Closed-loop evaluation in the reach world: which cases to run, and the table of what came out."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pi0_jax.sim.reach import COLORS, ReachEnv
from pi0_jax.sim.rollouts import Act, EpisodeResult, rollout, wilson_interval
from pi0_jax.sim.scene import ReachScene
from pi0_jax.sim.video import save_gif

Condition = Literal["right", "shuffled", "untrained"]
CONDITIONS: tuple[Condition, ...] = ("right", "shuffled", "untrained")


class Case(NamedTuple):
    """One robot under one condition: the right prompts, prompts shuffled among episodes, or an untrained policy as control."""

    robot: str
    condition: Condition


class Row(NamedTuple):
    case: Case
    block: str  # the colour that the episode's own prompt named, or "all"
    successes: int
    episodes: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.episodes)


def evaluate(
    acts: Mapping[Case, Act],
    *,
    episodes: int,
    seed: int,
    parallel: int,
    execute_steps: Mapping[str, int],
    record: int,
    directory: Path,
) -> list[Row]:
    """Runs `episodes` episodes of every case and saves the first `record` of each as GIF in `directory`/rollouts.

    Args:
        acts: the policy of every case.
        execute_steps: by robot, steps of a chunk that are executed before the next is asked for.

    Returns:
        For every case a row over all episodes, then one per block that the episodes' own prompts named.
    """
    rows = []
    for case, act in acts.items():
        with ReachScene(case.robot) as scene:
            result = rollout(
                partial(ReachEnv, case.robot, scene=scene), act, episodes=episodes, seed=seed, parallel=parallel,
                execute_steps=execute_steps[case.robot], prompts="shuffled" if case.condition == "shuffled" else "right", record=record,
            )  # fmt: skip
        rows += count(case, result.episodes)
        for recording in result.recordings:
            save_gif(directory / "rollouts" / f"{case.robot}-{case.condition}-{recording.result.episode}.gif", recording)
    return rows


def count(case: Case, results: Sequence[EpisodeResult]) -> list[Row]:
    groups = [("all", results)] + [(color, [r for r in results if r.color == color]) for color in COLORS]
    return [Row(case, block, sum(r.success for r in group), len(group)) for block, group in groups]


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'robot':<12} {'condition':<10} {'block':<6} {'success':>9} {'rate':>7}  95% Wilson interval"]
    for row in rows:
        low, high = row.interval
        rate = f"{100 * row.successes / row.episodes:6.1f}%" if row.episodes else "      -"
        score = f"{row.successes}/{row.episodes}"
        lines.append(
            f"{row.case.robot:<12} {row.case.condition:<10} {row.block:<6} {score:>9} {rate}  {100 * low:.1f}% to {100 * high:.1f}%"
        )
    return "\n".join(lines)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            **row.case._asdict(),
            "block": row.block,
            "successes": row.successes,
            "episodes": row.episodes,
            "interval": row.interval,
        }
        for row in rows
    ]
