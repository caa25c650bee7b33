"""Closed-loop rollouts: many environments in lockstep, one batched policy call per replan.

    tick     0    1    2    3    4    5    6 ...
    slot 0   [act, execute_steps of it ][act ...          an episode per slot; one that ends frees its slot,
    slot 1   [act, execute_steps of it ][act ...          and the next episode begins there at the next replan
             ^ observe, one call for all ^

A policy is a function of observations and seeds, an environment a World; nothing more is known of them here. What an episode looks like
depends on the rollout's seed and the episode's number, never on `parallel`, if a policy's rows do not depend on each other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from PIL import Image

from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.progress import progress_bar

# (observations, uint32[n] seeds, one for the noise of each row) -> float[n, H, A]: chunks of actions in robot units.
Act: TypeAlias = Callable[[Sequence[RawObservation], np.ndarray], np.ndarray]

_STREAM = 0x5EED  # keeps the episodes apart from those of demonstrations that were made with the same seed


class World(Protocol):
    """One environment as a rollout drives it."""

    robot: str
    action_names: Sequence[str]
    prompt: str  # of the episode
    group: str  # in which the episode is counted

    def begin(self, seed: int) -> None:
        """A new episode, which the seed decides."""

    def observe(self) -> RawObservation:
        """What the policy sees now. Called only when it is going to look: rendering costs more than physics."""

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        """One tick with float32[A]: whether the episode has succeeded, and whether it has ended."""

    def snapshot(self) -> Any:
        """What is kept of a tick to draw it later."""


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    episode: int
    robot: str
    seed: int
    prompt: str  # what the policy read
    group: str  # of the episode itself, for which success is measured
    success: bool
    ticks: int


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is needed to draw an episode."""

    result: EpisodeResult
    snapshots: tuple[Any, ...]  # World.snapshot() before every tick, and at the end
    chunks: np.ndarray  # float32[replans, H, A]: as predicted
    chunk_ticks: tuple[int, ...]  # when each chunk was predicted


@dataclasses.dataclass(frozen=True)
class Rollout:
    episodes: tuple[EpisodeResult, ...]
    recordings: tuple[Recording, ...]

    @property
    def successes(self) -> int:
        return sum(result.success for result in self.episodes)


class Setting(NamedTuple):
    """A kind of World, and how its recordings are drawn."""

    make_world: Callable[[], World]
    pictures: Callable[[Recording], Iterable[Image.Image]]  # one for each snapshot, all of one size


@dataclasses.dataclass(frozen=True)
class _Task:
    episode: int
    seed: int
    prompt: str | None  # None: the episode's own


class _Running:
    """One episode in its slot."""

    def __init__(self, world: World, task: _Task, record: bool) -> None:
        self.world, self.task, self._record = world, task, record
        self.ticks, self.done, self.success = 0, False, False
        self.snapshots: list[Any] = []
        self.chunks: list[np.ndarray] = []
        self.chunk_ticks: list[int] = []
        world.begin(task.seed)
        self.prompt, self.group = world.prompt if task.prompt is None else task.prompt, world.group
        self._keep()

    def _keep(self) -> None:
        if self._record:
            self.snapshots.append(self.world.snapshot())

    def observe(self) -> RawObservation:
        return {**self.world.observe(), "prompt": self.prompt}

    def noise_seed(self) -> int:
        return int(np.random.SeedSequence([self.task.seed, self.ticks]).generate_state(1)[0])

    def execute(self, chunk: np.ndarray, steps: int) -> None:
        """Runs the first `steps` actions, or fewer if the episode ends before."""
        self.chunks.append(chunk)
        self.chunk_ticks.append(self.ticks)
        for action in chunk[:steps]:
            self.success, self.done = self.world.advance(action)
            self.ticks += 1
            self._keep()
            if self.done:
                return

    def result(self) -> EpisodeResult:
        return EpisodeResult(
            self.task.episode,
            self.world.robot,
            self.task.seed,
            self.prompt,
            self.group,
            self.success,
            self.ticks,
        )

    def recording(self) -> Recording:
        return Recording(
            self.result(), tuple(self.snapshots), np.array(self.chunks), tuple(self.chunk_ticks)
        )


def rollout(
    make_world: Callable[[], World],
    act: Act,
    *,
    episodes: int,
    seed: int,
    parallel: int = 50,
    execute_steps: int = 5,
    prompts: Literal["right", "shuffled"] = "right",
    record: int = 0,
) -> Rollout:
    """Runs `episodes` episodes of one robot.

    Args:
        make_world: called `parallel` times at most. The worlds are not closed here.
        act: always gets the same number of observations; rows beyond the running episodes repeat the first one.
        seed: decides the episodes' seeds, the permutation of their prompts, and the policy's noise.
        parallel: environments, and rows of a policy call; fewer if there are fewer episodes.
        execute_steps: actions of a chunk that are executed before the next is asked for.
        prompts: "right": the policy reads each episode's own prompt. "shuffled": the prompts are permuted at random
            among the episodes, and success is still measured for the episode's own. A policy that ignores its prompt loses
            nothing then; in the reach world, one that does as it is told succeeds about 1 time in 3, by luck.
        record: the first so many episodes are recorded.

    Raises:
        InputError: the policy's answer is not float[n, H >= execute_steps, A] and finite.
    """
    shuffled = _is_shuffled(prompts)
    worlds = [make_world() for _ in range(min(parallel, episodes))]
    waiting = iter(_tasks(worlds[0], episodes, seed, shuffled=shuffled))
    running: list[_Running | None] = [None] * len(worlds)
    results: list[EpisodeResult] = []
    recordings: list[Recording] = []
    with progress_bar(
        total=episodes, desc=f"{worlds[0].robot}, {prompts} prompts", unit="episode"
    ) as bar:
        while True:
            running = _fill(running, worlds, waiting, record)
            active = [slot for slot in running if slot is not None]
            if not active:
                break
            for slot, chunk in zip(
                active, _ask(act, active, len(worlds), execute_steps), strict=True
            ):
                slot.execute(chunk, execute_steps)
            for slot in (slot for slot in active if slot.done):
                results.append(slot.result())
                if slot.task.episode < record:
                    recordings.append(slot.recording())
                bar.update()
            bar.set_postfix(
                success=f"{sum(result.success for result in results)}/{len(results)}", refresh=False
            )
    results.sort(key=lambda result: result.episode)
    recordings.sort(key=lambda recording: recording.result.episode)
    return Rollout(tuple(results), tuple(recordings))


def wilson_interval(successes: int, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a binomial proportion; by default the 95% one. (0, 1) without trials.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    # Without a success or a failure one end is 0 or 1, which rounding would miss.
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half


def _is_shuffled(prompts: str) -> bool:
    if prompts not in ("right", "shuffled"):
        raise InputError(f"prompts: expected right or shuffled, found {prompts!r}")
    return prompts == "shuffled"


def _tasks(world: World, episodes: int, seed: int, *, shuffled: bool) -> list[_Task]:
    """Every episode's seed, and the prompt that its policy reads."""
    seeds = [
        int(np.random.SeedSequence([seed, _STREAM, episode]).generate_state(1)[0])
        for episode in range(episodes)
    ]
    if not shuffled:
        return [_Task(i, episode_seed, None) for i, episode_seed in enumerate(seeds)]
    own = []
    for episode_seed in seeds:
        world.begin(episode_seed)
        own.append(world.prompt)
    order = np.random.default_rng([seed, _STREAM]).permutation(episodes)
    return [_Task(i, seeds[i], own[order[i]]) for i in range(episodes)]


def _fill(
    running: Sequence[_Running | None],
    worlds: Sequence[World],
    waiting: Iterator[_Task],
    record: int,
) -> list[_Running | None]:
    """The slots with episodes that still run, and in the others the next ones that wait."""
    filled: list[_Running | None] = []
    for slot, world in zip(running, worlds, strict=True):
        if slot is None or slot.done:
            task = next(waiting, None)
            slot = None if task is None else _Running(world, task, task.episode < record)
        filled.append(slot)
    return filled


def _ask(act: Act, active: Sequence[_Running], rows: int, execute_steps: int) -> np.ndarray:
    """One policy call of `rows` rows: float32[len(active), H, A]."""
    observations = [slot.observe() for slot in active]
    seeds = [slot.noise_seed() for slot in active]
    missing = rows - len(active)
    chunks = np.asarray(
        act(
            observations + observations[:1] * missing,
            np.array(seeds + seeds[:1] * missing, np.uint32),
        )
    )
    names = active[0].world.action_names
    _check_shape(chunks, rows, execute_steps, len(names))
    chunks = chunks[: len(active)]
    bad = np.argwhere(~np.isfinite(chunks))
    if bad.size:
        row, step, dim = bad[0]
        where = f"episode {active[row].task.episode}, tick {active[row].ticks}, chunk step {step}, {names[dim]}"
        raise InputError(
            f"policy's actions: {where}: expected a finite number, found {chunks[row, step, dim]}"
        )
    return chunks.astype(np.float32)


def _check_shape(chunks: np.ndarray, rows: int, execute_steps: int, dims: int) -> None:
    right = (
        chunks.ndim == 3
        and chunks.shape[0] == rows
        and chunks.shape[1] >= execute_steps
        and chunks.shape[2] == dims
    )
    if not right or not np.issubdtype(chunks.dtype, np.floating):
        expected = f"float[{rows}, H >= {execute_steps}, {dims}]"
        raise InputError(
            f"policy's actions: expected {expected}, found {chunks.dtype}{list(chunks.shape)}; H is at least execute_steps"
        )
