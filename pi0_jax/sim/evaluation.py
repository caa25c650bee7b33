"""Evaluates policies in closed loop: which cases to run, and the table of what came out."""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.execution import Execution, OpenLoop, TemporalEnsemble
from pi0_jax.files import replacing
from pi0_jax.sim.rollouts import Act, rollout, wilson_interval
from pi0_jax.sim.workers import Slots, Workers
from pi0_jax.sim.worlds import EpisodeResult, Setting

Condition = Literal["right", "shuffled", "untrained"]
CONDITIONS: tuple[Condition, ...] = ("right", "shuffled", "untrained")
ALL = "all"
FILE = "evaluation.json"
# The rate of GIFs where a record does not know its robot's control rate.
UNKNOWN_HZ = 10.0


class Case(NamedTuple):
    """Names one robot under one condition.

    The conditions are the right prompts, prompts shuffled among episodes, and an untrained policy
    as a control.
    """

    robot: str
    condition: Condition


class Contestant(NamedTuple):
    """Holds a policy to be evaluated, and the record of its robot as the robot's world has it."""

    case: Case
    act: Act
    embodiment: Embodiment


class Row(NamedTuple):
    """Counts the successes of one case in one group of episodes.

    The group has the world's own name (in the reach world it is the block that counts) or is "all".
    """

    case: Case
    group: str
    successes: int
    episodes: int

    @property
    def interval(self) -> tuple[float, float]:
        """Returns the 95% Wilson interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)


class Evaluation(NamedTuple):
    """Holds the success counts and the seconds of physics, rendering, policy and videos."""

    rows: list[Row]
    seconds: dict[str, float]


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
    execute_steps: int | None = None,
    ensemble: float | None = None,
) -> Evaluation:
    """Runs the episodes of every case.

    The first `record` episodes of each case are saved as GIFs in directory/rollouts, which is
    emptied before.

    Args:
        contestants: the policies.
        setting: opens the worlds of a robot. It is called in worker processes.
        episodes: the number of episodes of each case.
        seed: decides the episodes and the policy's noise.
        parallel: the number of environments side by side.
        record: the number of episodes of each case that become GIFs.
        directory: the folder for the results.
        workers: the number of processes that simulate and render; None takes one for each core.
        execute_steps, ensemble: see `chosen_execution`.

    Returns:
        For every case a row over all episodes, then a row for each group if there are several.
    """
    shutil.rmtree(directory / "rollouts", ignore_errors=True)
    (directory / FILE).unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
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
                execution=chosen_execution(embodiment, execute_steps, ensemble),
                prompts="shuffled" if case.condition == "shuffled" else "right",
                record=record,
            )
            rows += count(case, result.episodes)
            for stage, taken in result.seconds.items():
                seconds[stage] += taken
            start = time.perf_counter()
            tick_seconds = 1 / (embodiment.control_hz or UNKNOWN_HZ)
            videos = directory / "rollouts", f"{case.robot}-{case.condition}", tick_seconds
            pool.ask(Slots.save_videos, [videos] * pool.count)
            seconds["videos"] += time.perf_counter() - start
    return Evaluation(rows, dict(seconds))


def chosen_execution(
    embodiment: Embodiment, execute_steps: int | None, ensemble: float | None
) -> Execution:
    """Returns how chunks of a robot are executed.

    Args:
        embodiment: the robot's record.
        execute_steps: so many steps of a chunk before the next one; None takes the record's.
        ensemble: instead, the decay of a temporal ensemble; None is no ensemble.

    Raises:
        InputError: both are given.
    """
    if ensemble is None:
        return OpenLoop(execute_steps or embodiment.execute_steps)
    if execute_steps is not None:
        raise InputError(
            "expected --execute_steps or --temporal_ensemble, which asks for a chunk at every tick,"
            " found both"
        )
    return TemporalEnsemble(ensemble, turns=tuple(dim.turn for dim in embodiment.actions))


def save(
    directory: Path,
    rows: Sequence[Row],
    *,
    checkpoint: str,
    seed: int,
    execute_steps: int | None = None,
    ensemble: float | None = None,
) -> None:
    """Writes evaluation.json.

    Args:
        directory: the folder of the evaluation.
        rows: the counts.
        checkpoint: the folder or the server's address that the policy came from.
        seed: the seed of the evaluation.
        execute_steps, ensemble: as they were given, see `chosen_execution`.
    """
    counts = [
        {
            **row.case._asdict(),
            "group": row.group,
            "successes": row.successes,
            "episodes": row.episodes,
            "interval": row.interval,
        }
        for row in rows
    ]
    with replacing(directory / FILE) as temporary:
        execution = {"execute_steps": execute_steps, "temporal_ensemble": ensemble}
        record = {"checkpoint": checkpoint, "seed": seed, **execution, "rows": counts}
        temporary.write_text(json.dumps(record, indent=1))


def count(case: Case, results: Sequence[EpisodeResult]) -> list[Row]:
    """Returns a row over all results, and one for each group if there are several."""
    names = sorted({result.group for result in results})
    groups = {name: [one for one in results if one.group == name] for name in names}
    counted = {ALL: results, **(groups if len(groups) > 1 else {})}
    return [
        Row(case, name, sum(one.success for one in group), len(group))
        for name, group in counted.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a text table."""
    robots = max(12, *(len(row.case.robot) for row in rows))
    groups = max(6, *(len(row.group) for row in rows))
    names = f"{'robot':<{robots}} {'condition':<10} {'group':<{groups}}"
    lines = [f"{names} {'success':>9} {'rate':>7}  95% Wilson interval"]
    for row in rows:
        low, high = row.interval
        score, rate = f"{row.successes}/{row.episodes}", 100 * row.successes / row.episodes
        names = f"{row.case.robot:<{robots}} {row.case.condition:<10} {row.group:<{groups}}"
        lines.append(f"{names} {score:>9} {rate:6.1f}%  {100 * low:.1f}% to {100 * high:.1f}%")
    return "\n".join(lines)
