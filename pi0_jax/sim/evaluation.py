"""Closed-loop evaluation: which cases to run, and the table of what came out."""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pi0_jax.embodiments import Embodiment
from pi0_jax.files import replacing
from pi0_jax.sim.rollouts import Act, rollout, wilson_interval
from pi0_jax.sim.workers import Slots, Workers
from pi0_jax.sim.worlds import EpisodeResult, Setting

Condition = Literal["right", "shuffled", "untrained"]
CONDITIONS: tuple[Condition, ...] = ("right", "shuffled", "untrained")
ALL = "all"
FILE = "evaluation.json"
UNKNOWN_HZ = 10.0  # of GIFs, where a record does not know its robot's control rate


class Case(NamedTuple):
    """One robot under one condition: the right prompts, prompts shuffled among episodes, or an untrained policy as control."""

    robot: str
    condition: Condition


class Contestant(NamedTuple):
    case: Case
    act: Act
    embodiment: Embodiment  # of the robot as its world has it


class Row(NamedTuple):
    case: Case
    group: str  # of episodes, by the world's own names (the reach world's: the block that counts), or "all"
    successes: int
    episodes: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.episodes)


class Evaluation(NamedTuple):
    """What an evaluation found, and where its time went."""

    rows: list[Row]
    seconds: dict[str, float]  # by stage: physics, rendering, policy, videos


def evaluate(
    contestants: Sequence[Contestant],
    setting: Callable[[Embodiment], AbstractContextManager[Setting]],
    *,
    episodes: int,
    seed: int,
    parallel: int,
    record: int,
    directory: Path,
    workers: int | None = None,
) -> Evaluation:
    """Runs `episodes` episodes of every case.

    The first `record` of each are saved as GIFs in directory/rollouts, which is emptied before.

    Args:
        setting: Opens the worlds of a robot. It is called in worker processes.
        workers: The number of processes that simulate and render; None takes one for each core.

    Returns:
        Rows: for every case one over all episodes, then one for each group if there are several.
    """
    clear(directory)
    rows: list[Row] = []
    seconds: defaultdict[str, float] = defaultdict(float)
    with Workers(workers) as pool:
        for case, act, embodiment in contestants:
            result = rollout(
                pool,
                partial(setting, embodiment),
                act,
                episodes=episodes,
                seed=seed,
                parallel=parallel,
                execute_steps=embodiment.execute_steps,
                prompts="shuffled" if case.condition == "shuffled" else "right",
                record=record,
            )
            rows += count(case, result.episodes)
            for stage, taken in result.seconds.items():
                seconds[stage] += taken
            start = time.perf_counter()
            name = f"{case.robot}-{case.condition}"
            tick_seconds = 1 / (embodiment.control_hz or UNKNOWN_HZ)
            videos = directory / "rollouts", name, tick_seconds
            pool.ask(Slots.save_videos, [videos] * pool.count)
            seconds["videos"] += time.perf_counter() - start
    return Evaluation(rows, dict(seconds))


def clear(directory: Path) -> None:
    """Makes the folder of an evaluation, without what an earlier one left there."""
    shutil.rmtree(directory / "rollouts", ignore_errors=True)
    (directory / FILE).unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)


def save(directory: Path, rows: Sequence[Row], *, checkpoint: str, seed: int) -> None:
    """Writes evaluation.json. `checkpoint`: the folder or the server's address that the policy came from."""
    record = {"checkpoint": checkpoint, "seed": seed, "rows": to_json(rows)}
    with replacing(directory / FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=1))


def count(case: Case, results: Sequence[EpisodeResult]) -> list[Row]:
    names = sorted({result.group for result in results})
    groups = (
        [(name, [result for result in results if result.group == name]) for name in names]
        if len(names) > 1
        else []
    )
    return [
        Row(case, name, sum(r.success for r in group), len(group))
        for name, group in [(ALL, results), *groups]
    ]


def table(rows: Sequence[Row]) -> str:
    robots = max(12, *(len(row.case.robot) for row in rows))
    groups = max(6, *(len(row.group) for row in rows))
    lines = [
        f"{'robot':<{robots}} {'condition':<10} {'group':<{groups}} {'success':>9} {'rate':>7}  95% Wilson interval"
    ]
    for row in rows:
        low, high = row.interval
        score, rate = f"{row.successes}/{row.episodes}", 100 * row.successes / row.episodes
        names = f"{row.case.robot:<{robots}} {row.case.condition:<10} {row.group:<{groups}}"
        lines.append(f"{names} {score:>9} {rate:6.1f}%  {100 * low:.1f}% to {100 * high:.1f}%")
    return "\n".join(lines)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            **row.case._asdict(),
            "group": row.group,
            "successes": row.successes,
            "episodes": row.episodes,
            "interval": row.interval,
        }
        for row in rows
    ]
