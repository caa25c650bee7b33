"""Runs a family's tasks under several conditions, and keeps every episode as soon as it is over.

    directory/episodes.jsonl    what is measured, and a line for each episode that is over
    directory/evaluation.json   the table, the protocol, versions and seeds, once all are over
    directory/rollouts/         videos of the first successes and failures of each task

Row r of every policy call runs the episodes r, r + B, r + 2 B ... of each task, and a call always
has all B rows. So an episode's result depends on the seed, its task, its number and the
weights, and neither on the number of workers nor on which other episodes run. A run that was
stopped goes on: episodes in the file are not run again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import pi0_jax
from pi0_jax.errors import InputError
from pi0_jax.files import replacing
from pi0_jax.observation import RawObservation
from pi0_jax.progress import progress_bar
from pi0_jax.sim import gl
from pi0_jax.sim.benchmark import families
from pi0_jax.sim.benchmark.families import Chosen
from pi0_jax.sim.benchmark.journal import Journal, Key
from pi0_jax.sim.evaluation import FILE, UNKNOWN_HZ
from pi0_jax.sim.rollouts import Act, checked, per_slot, wilson_interval
from pi0_jax.sim.workers import Slots, Workers
from pi0_jax.sim.worlds import Episode

# The conditions of a table, in their order. The last two need demonstrations.
CONDITIONS = ("right", "shuffled", "black", "untrained", "nearest_state", "nearest_pixels")
EPISODES_FILE = "episodes.jsonl"
_PROMPTS, _NOISE = 1, 2  # streams of random numbers beside that of initial states


class Candidate(NamedTuple):
    """Holds a policy, and what tells it from another beside its answers: versions, a digest."""

    act: Act
    marks: Mapping[str, Any] = {}


# Opens the policy of a condition.
OpenPolicy: TypeAlias = Callable[[str], AbstractContextManager[Candidate]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says what is measured.

    Attributes:
        env: what names the family and its tasks (families.py).
        conditions: some of CONDITIONS.
        episodes: how many of each task under each condition.
        seed: decides initial states, the policy's noise and which prompts are shuffled to where.
        batch: the observations of a policy call.
        execute_steps: how many actions of a chunk are executed.
        source: where the policy came from.
        record: how many successes and how many failures of a task and condition become videos.
    """

    env: str
    conditions: tuple[str, ...]
    episodes: int
    seed: int
    batch: int
    execute_steps: int
    source: str
    record: int = 1


def measure(
    plan: Plan, open_policy: OpenPolicy, directory: Path, *, workers: int | None = None
) -> dict[str, Any]:
    """Runs what is missing of a plan, and returns what evaluation.json then holds.

    Args:
        plan: what is measured.
        open_policy: opens the policy of a condition. It is called for conditions of which an
            episode is missing.
        directory: the folder of the results.
        workers: the number of processes; None takes one for each core.

    Raises:
        InputError: a condition is unknown or there is none, the folder holds the results of another plan, or a
            worker or the policy fails; what is over by then is kept.
    """
    chosen = families.find(plan.env)
    if not plan.conditions:
        raise InputError(f"conditions: expected some of {', '.join(CONDITIONS)}; found none")
    if unknown := [one for one in plan.conditions if one not in CONDITIONS]:
        raise InputError(
            f"condition {unknown[0]!r} is unknown; expected some of {', '.join(CONDITIONS)}"
        )
    sentences = {chosen.family.tasks[task] for task in chosen.tasks}
    if "shuffled" in plan.conditions and len(sentences) < 2:
        raise InputError(
            "condition shuffled: expected tasks of at least two instructions, found one"
        )
    directory.mkdir(parents=True, exist_ok=True)
    gl.prepare_workers()  # it chooses the OpenGL library, which the results name
    journal = Journal(directory / EPISODES_FILE, _about(plan, chosen))
    with contextlib.closing(journal):
        for condition in plan.conditions:
            missing = [
                Key(condition, task, episode)
                for task in chosen.tasks
                for episode in range(plan.episodes)
                if Key(condition, task, episode) not in journal.results
            ]
            if missing:
                with open_policy(condition) as candidate, Workers(workers) as pool:
                    _run(pool, plan, chosen, missing, candidate, journal, directory)
    found = _found(plan, chosen, journal)
    with replacing(directory / FILE) as temporary:
        temporary.write_text(json.dumps({**found, "seconds": dict(journal.seconds)}, indent=1))
    return found


def table(
    rows: Sequence[Mapping[str, Any]], published: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """Returns the rows of a result as a text table: a line a group, a column a condition.

    What others published of the same rows stands below, in percent.
    """
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    cells = {(row["group"], row["condition"]): row for row in rows}
    width = max(map(len, groups))
    lines = [" " * width + "".join(f" {name:>22}" for name in conditions)]
    for group in groups:
        line = f"{group:<{width}}"
        for condition in conditions:
            row = cells[group, condition]
            low, high = (round(100 * end) for end in row["interval"])
            line += f" {row['successes']:>5}/{row['episodes']:<4} {low:>3} to {high:>3}%"
        lines.append(line)
    return "\n".join([*lines, *(_published_lines(published) if published else [])])


def _published_lines(published: Mapping[str, Mapping[str, float]]) -> list[str]:
    groups = list(dict.fromkeys(group for rates in published.values() for group in rates))
    wide = max(len(one) for one in (*groups, "100.0"))
    lines = ["published, in percent, each by its own protocol"]
    lines.append(" ".join(f"{group:>{wide}}" for group in groups))
    for who, rates in published.items():
        cells = (rates.get(group, "") for group in groups)
        lines.append(" ".join(f"{cell:>{wide}}" for cell in cells) + f"  {who}")
    return lines


def _run(
    pool: Workers,
    plan: Plan,
    chosen: Chosen,
    missing: Sequence[Key],
    candidate: Candidate,
    journal: Journal,
    directory: Path,
) -> None:
    """Runs the missing episodes of one condition."""
    opened, act = pool.open(partial(families.family_setting, plan.env)), candidate.act
    answer = _fingerprint(pool, plan, chosen, act)
    journal.same_policy(missing[0].condition, {"answer": answer, **candidate.marks})
    seconds = Counter[str]()
    queues = [
        deque(key for key in missing if key.episode % plan.batch == r) for r in range(plan.batch)
    ]
    numbers = {key: number for number, key in enumerate(missing)}
    running: dict[int, Key] = {}
    ticks: dict[int, int] = {}
    kept = Counter(
        (key.task, success)
        for key, (success, _) in journal.results.items()
        if key.condition == missing[0].condition
    )
    hz = chosen.family.record.control_hz or UNKNOWN_HZ
    with progress_bar(total=len(missing), desc=missing[0].condition, unit="episode") as bar:
        while running or any(queues):
            started = {
                row: queue.popleft()
                for row, queue in enumerate(queues)
                if row not in running and queue
            }
            running |= started
            ticks |= dict.fromkeys(started, 0)
            with _timed(seconds, "simulation"):
                begun = {
                    row: _episode(plan, chosen, key, numbers[key]) for row, key in started.items()
                }
                per_slot(pool, Slots.begin, begun)
                seen = per_slot(pool, Slots.observe, dict.fromkeys(running))
            with _timed(seconds, "policy"):
                chunks = _asked(plan, act, seen, running, ticks, opened.action_names)
            with _timed(seconds, "simulation"):
                given = {row: chunks[row] for row in running}
                ended = per_slot(pool, Slots.execute, given, plan.execute_steps)
            over = [(running.pop(row), result) for row, result in sorted(ended.items())]
            videos = {}
            for key, result in over:
                if kept[key.task, result.success] < plan.record:
                    verdict = "success" if result.success else "failure"
                    name = f"{key.condition}-{key.task}-{verdict}-{key.episode}.gif"
                    videos[result.episode] = directory / "rollouts" / name
                kept[key.task, result.success] += 1
            if over:
                with _timed(seconds, "videos"):
                    pool.ask(Slots.save_some, [(videos, 1 / hz)] * pool.count)
                # What is in the journal has its video.
                for key, result in over:
                    journal.add(key, bool(result.success), result.ticks)
                journal.took(seconds)
                seconds.clear()
            ticks = {row: count + plan.execute_steps for row, count in ticks.items()}
            bar.update(len(ended))
            won = sum(
                s for k, (s, _) in journal.results.items() if k.condition == missing[0].condition
            )
            bar.set_postfix(success=won, refresh=False)


def _episode(plan: Plan, chosen: Chosen, key: Key, number: int) -> Episode:
    """Returns the episode with the prompt that its policy reads; all are recorded."""
    family, tasks = chosen
    prompt = None
    if key.condition == "shuffled":
        others = [task for task in tasks if family.tasks[task] != family.tasks[key.task]]
        random = families.stream(plan.seed, key.task, key.episode, _PROMPTS)
        prompt = family.tasks[others[int(random.integers(len(others)))]]
    state = family.initial_state(plan.seed, key.task, key.episode)
    return Episode(number, families.world_seed(tasks.index(key.task), state), prompt, True)


def _asked(
    plan: Plan,
    act: Act,
    seen: Mapping[int, RawObservation],
    running: Mapping[int, Key],
    ticks: Mapping[int, int],
    names: Sequence[str],
) -> np.ndarray:
    """Makes one policy call: every row has its place, and rows without an episode repeat one."""
    some = next(iter(running))
    observations = [seen.get(row, seen[some]) for row in range(plan.batch)]
    seeds = np.zeros(plan.batch, np.uint32)
    for row, key in running.items():
        random = families.stream(plan.seed, key.task, key.episode, _NOISE, ticks[row])
        seeds[row] = random.integers(2**32, dtype=np.uint32)
    answer = _answer(act, observations, seeds)
    read = {row: f"{key.task}, episode {key.episode}" for row, key in running.items()}
    return checked(answer, plan.batch, plan.execute_steps, names, read).astype(np.float32)


def _answer(act: Act, observations: Sequence[RawObservation], seeds: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(act(observations, seeds))
    except TimeoutError as error:
        kept = "what is over is kept, and the same command goes on"
        raise InputError(f"the policy does not answer: {error}; {kept}") from error


def _fingerprint(pool: Workers, plan: Plan, chosen: Chosen, act: Act) -> str:
    """Returns a digest of the policy's answer to the beginning of the first task's first episode."""
    first = Key("right", chosen.tasks[0], 0)
    per_slot(pool, Slots.begin, {0: _episode(plan, chosen, first, 0)})
    question = per_slot(pool, Slots.observe, {0: None})[0]
    answer = _answer(act, [question] * plan.batch, np.zeros(plan.batch, np.uint32))
    return hashlib.sha256(answer.astype(np.float32).tobytes()).hexdigest()[:16]


def _about(plan: Plan, chosen: Chosen) -> dict[str, Any]:
    """Returns what decides the results, as JSON holds it."""
    family, tasks = chosen
    with families.installed(family.name):
        versions = {name: version(name) for name in ("numpy", *family.packages)}
    versions["pi0_jax"] = pi0_jax.__version__
    facts = dataclasses.asdict(plan) | {
        # A server that is started again elsewhere is the same policy if its answers are.
        "conditions": None, "episodes": None, "record": None, "source": None,
        "protocol": family.protocol,
        "tasks": [[task, family.tasks[task]] for task in tasks],
        "most_actions": {task: family.limit(task) for task in tasks}
        if family.limits else family.most_actions,
        "initial_states": family.initial_states,
        "family_file": hashlib.sha256(families.file_of(plan.env).read_bytes()).hexdigest()[:16],
        "versions": versions
        | {"python": platform.python_version(), "machine": platform.machine()}
        | {"opengl": os.environ.get("MUJOCO_GL", "")},
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value is not None}


def _found(plan: Plan, chosen: Chosen, journal: Journal) -> dict[str, Any]:
    """Returns what evaluation.json holds: for each condition all tasks, groups, and each task."""
    family, tasks = chosen
    inside = families.groups_inside(chosen)
    each = {task: (task,) for task in tasks} if len(tasks) > 1 else {}
    rows = []
    for condition in plan.conditions:
        for name, group in {"all": tasks, **inside, **each}.items():
            keys = [Key(condition, task, e) for task in group for e in range(plan.episodes)]
            won = sum(journal.results[key][0] for key in keys)
            rows.append(
                {
                    "robot": family.record.name,
                    "condition": condition,
                    "group": name,
                    "successes": won,
                    "episodes": len(keys),
                    "interval": list(wilson_interval(won, len(keys))),
                }
            )
    policies = {one: journal.policies[one] for one in plan.conditions}
    # The chosen tasks, which the rows call "all", are a group of some name or several.
    names = {plan.env.rpartition(":")[2]: "all"} | {name: name for name in inside}
    published = {
        who: told
        for who, rates in family.published.items()
        if "right" in plan.conditions
        and (told := {row: rates[name] for name, row in names.items() if name in rates})
    }
    found = {"checkpoint": plan.source, **journal.about, "policies": policies, "rows": rows}
    return {**found, "published": published} if published else found


@contextlib.contextmanager
def _timed(seconds: Counter[str], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start  # type: ignore[assignment]
