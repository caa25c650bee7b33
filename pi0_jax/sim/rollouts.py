"""Runs rollouts in closed loop: many environments side by side, one policy call per replan.

    tick     0    1    2    3    4    5    6 ...
    slot 0   [act, some steps of it    ][act ...     one episode per slot; when it ends, the next
    slot 1   [act, some steps of it    ][act ...     one begins in that slot at the next replan
             ^ observe, one call for all ^

How a chunk is executed, and so when a replan is due, is said by a strategy (execution.py), of which
every episode has its own. The policy is a function of observations and seeds. The environments run in worker processes
(workers.py). What an episode looks like depends on the rollout's seed and the episode's number, and
on neither `parallel` nor the number of workers, if a policy's rows do not depend on each other.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from pi0_jax.errors import InputError
from pi0_jax.execution import Execution, OpenLoop, until_next_chunk
from pi0_jax.observation import RawObservation
from pi0_jax.progress import progress_bar
from pi0_jax.sim.workers import Opened, OpenSetting, Slots, Workers
from pi0_jax.sim.worlds import Episode, EpisodeResult, Recording

# A policy: it takes n observations and uint32[n] seeds for the noise, and returns chunks of actions
# float[n, H, A] in robot units.
Act: TypeAlias = Callable[[Sequence[RawObservation], np.ndarray], np.ndarray]

# This number keeps the episodes apart from demonstrations that were made with the same seed.
_STREAM = 0x5EED
_OPEN_LOOP = OpenLoop(5)


class Rollout(NamedTuple):
    """Holds the episodes of a rollout, by number, and where its time went."""

    episodes: tuple[EpisodeResult, ...]
    seconds: Mapping[str, float]  # of "physics", "rendering" and "policy"

    @property
    def successes(self) -> int:
        """Returns the number of episodes that succeeded."""
        return sum(result.success for result in self.episodes)


class _Running(NamedTuple):
    """Describes an episode that runs in a slot, after `ticks` ticks."""

    slot: int
    episode: Episode
    ticks: int
    execution: Execution

    def noise_seed(self) -> int:
        return int(np.random.SeedSequence([self.episode.seed, self.ticks]).generate_state(1)[0])


def rollout(
    workers: Workers,
    setting: OpenSetting,
    act: Act,
    *,
    episodes: int,
    seed: int,
    parallel: int = 50,
    execution: Execution = _OPEN_LOOP,
    prompts: Literal["right", "shuffled"] = "right",
    record: int = 0,
) -> Rollout:
    """Runs the episodes of one robot.

    Args:
        workers: the processes in which the environments run.
        setting: opens the environments, in a worker. They stay open for `recordings` and
            `save_videos`.
        act: the policy. It always gets the same number of observations: rows beyond the running
            episodes repeat the first one.
        episodes: how many episodes to run.
        seed: decides the episodes' seeds, the permutation of their prompts, and the policy's noise.
        parallel: the number of environments, and of rows of a policy call; fewer if there are
            fewer episodes.
        execution: how every episode executes its chunks.
        prompts: "right": the policy reads each episode's own prompt. "shuffled": the prompts are
            permuted at random among the episodes, and success is still measured for the episode's
            own. So a policy that ignores its prompt loses nothing. In the reach world, one that
            does as it is told succeeds about 1 time in 3, by luck.
        record: the first so many episodes are recorded.

    Raises:
        InputError: the policy's answer is not float[n, H, A] and finite, or H is too short to be
            executed. Whatever the setting raises comes through as well.
    """
    if prompts not in ("right", "shuffled"):
        raise InputError(f"prompts: expected right or shuffled, found {prompts!r}")
    opened, rows = workers.open(setting), min(parallel, episodes)
    seconds = {"physics": 0.0, "rendering": 0.0, "policy": 0.0}
    waiting = deque(_episodes(workers, episodes, seed, record, shuffled=prompts == "shuffled"))
    free, running = list(range(rows)), list[_Running]()
    results: list[EpisodeResult] = []
    about = f"{opened.robot}, {prompts} prompts"
    with progress_bar(total=episodes, desc=about, unit="episode") as bar:
        while waiting or running:
            started = {slot: waiting.popleft() for slot in free[: len(waiting)]}
            free = free[len(started) :]
            running += [_Running(slot, episode, 0, execution) for slot, episode in started.items()]
            # The rows are in order of episode numbers, so that a row does not depend on when other
            # episodes end.
            running.sort(key=lambda one: one.episode.number)
            if started:
                with _timed(seconds, "physics"):
                    per_slot(workers, Slots.begin, started)
            with _timed(seconds, "rendering"):
                seen = per_slot(workers, Slots.observe, {one.slot: None for one in running})
            with _timed(seconds, "policy"):
                observations = [seen[one.slot] for one in running]
                chunks = _ask(act, observations, running, rows, execution.shortest, opened)
                executed, running, steps = _executed(chunks, running)
            with _timed(seconds, "physics"):
                slots = [one.slot for one in running]
                by_slot = dict(zip(slots, executed, strict=True))
                ended = per_slot(workers, Slots.execute, by_slot, steps)
            free += ended
            results += ended.values()
            bar.update(len(ended))
            running = [one for one in running if one.slot not in ended]
            score = f"{sum(result.success for result in results)}/{len(results)}"
            bar.set_postfix(success=score, refresh=False)
    return Rollout(tuple(sorted(results, key=lambda result: result.episode)), seconds)


def recordings(workers: Workers) -> list[Recording]:
    """Returns the recorded episodes of the last rollout, by number."""
    found = workers.ask(Slots.recordings, [()] * workers.count)
    return sorted((one for part in found for one in part), key=lambda one: one.result.episode)


def wilson_interval(successes: int, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Returns the Wilson score interval of a binomial proportion; without trials it is (0, 1).

    `z` is the normal quantile of the interval's level, by default 95%. Source: Wilson (1927),
    "Probable inference, the law of succession, and statistical inference".
    """
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    half = z / (1 + z**2 / trials) * spread
    # Without a success (or a failure) one end is exactly 0 (or 1); rounding would miss it.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start


def _episodes(
    workers: Workers, count: int, seed: int, record: int, *, shuffled: bool
) -> list[Episode]:
    """Returns every episode with its seed and the prompt that its policy reads."""
    keys = [np.random.SeedSequence([seed, _STREAM, number]) for number in range(count)]
    seeds = [int(key.generate_state(1)[0]) for key in keys]
    prompts: list[str | None] = [None] * count
    if shuffled:
        # The workers read the prompts side by side: worker w those of episodes w, w + count, ...
        parts = [(seeds[worker :: workers.count],) for worker in range(workers.count)]
        for worker, own in enumerate(workers.ask(Slots.prompts, parts)):
            prompts[worker :: workers.count] = own
        order = np.random.default_rng([seed, _STREAM]).permutation(count)
        prompts = [prompts[i] for i in order]
    return [
        Episode(i, one, prompt, i < record)
        for i, (one, prompt) in enumerate(zip(seeds, prompts, strict=True))
    ]


def per_slot(
    workers: Workers,
    method: Callable[..., Mapping[int, Any]],
    by_slot: Mapping[int, Any],
    *more: Any,
) -> dict[int, Any]:
    """Calls a method of Slots with what concerns each worker's slots, and returns all answers.

    Slot s is in worker s mod the number of workers.
    """
    parts: list[dict[int, Any]] = [{} for _ in range(workers.count)]
    for slot, value in by_slot.items():
        parts[slot % workers.count][slot] = value
    answers = workers.ask(method, [(part, *more) for part in parts])
    return {slot: found for answer in answers for slot, found in answer.items()}


def _executed(
    chunks: np.ndarray, running: Sequence[_Running]
) -> tuple[list[np.ndarray], list[_Running], int]:
    """Returns the chunks with the actions that are executed, float[H, A] each, and their number.

    Also returns the episodes as they are after that number of ticks.
    """
    executed, after = [], []
    for chunk, one in zip(chunks, running, strict=True):
        actions, execution = until_next_chunk(one.execution, chunk)
        executed.append(np.concatenate([actions, chunk[len(actions) :]]))
        after.append(one._replace(ticks=one.ticks + len(actions), execution=execution))
    return executed, after, len(actions)


def _ask(
    act: Act,
    observations: list[RawObservation],
    running: Sequence[_Running],
    rows: int,
    shortest: int,
    opened: Opened,
) -> np.ndarray:
    """Makes one policy call of `rows` rows, and returns float32[len(running), H, A]."""
    seeds = [one.noise_seed() for one in running]
    missing = rows - len(running)
    padded = np.array(seeds + seeds[:1] * missing, np.uint32)
    chunks = np.asarray(act(observations + observations[:1] * missing, padded))
    where = [f"episode {one.episode.number}, tick {one.ticks}" for one in running]
    rows_of = dict(enumerate(where))
    return checked(chunks, rows, shortest, opened.action_names, rows_of)[: len(running)]


def checked(
    chunks: np.ndarray,
    rows: int,
    execute_steps: int,
    names: Sequence[str],
    read: Mapping[int, str],
) -> np.ndarray:
    """Returns a policy's answer as float32[rows, H, A].

    Args:
        chunks: the answer.
        rows: how many rows were asked for.
        execute_steps: how many actions of a chunk will be executed.
        names: of the A action dimensions.
        read: the rows that are executed, with what each is called in a message.

    Raises:
        InputError: the answer has another shape, or a row that is executed is not finite.
    """
    shape = chunks.shape
    right = len(shape) == 3 and shape[1] >= execute_steps and shape[::2] == (rows, len(names))
    if not right or not np.issubdtype(chunks.dtype, np.floating):
        expected = f"float[{rows}, H >= {execute_steps}, {len(names)}]"
        found = f"{chunks.dtype}{list(shape)}"
        raise InputError(
            f"policy's actions: expected {expected}, found {found}; H is at least execute_steps"
        )
    for row, called in read.items():
        bad = np.argwhere(~np.isfinite(chunks[row]))
        if bad.size:
            step, dim = bad[0]
            where, found = f"{called}, chunk step {step}, {names[dim]}", chunks[row, step, dim]
            raise InputError(f"policy's actions: {where}: expected a finite number, found {found}")
    return chunks.astype(np.float32)
