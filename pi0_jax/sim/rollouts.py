"""Closed-loop rollouts: many environments in lockstep, one batched policy call per replan.

    tick     0    1    2    3    4    5    6 ...
    slot 0   [act, execute_steps of it ][act ...          an episode per slot; one that ends frees its slot,
    slot 1   [act, execute_steps of it ][act ...          and the next episode begins there at the next replan
             ^ render, one call for all ^

A policy is a function of observations and seeds; nothing more is known of it here. What an episode looks like depends
on the rollout's seed and the episode's number, never on `parallel`, if a policy's rows do not depend on each other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import tqdm

from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.sim.reach import ReachEnv

# (observations, uint32[n] seeds, one for the noise of each row) -> float[n, H, A]: chunks of actions in robot units.
Act: TypeAlias = Callable[[Sequence[RawObservation], np.ndarray], np.ndarray]

_STREAM = 0x5EED  # keeps the episodes apart from those of demonstrations that were made with the same seed


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    episode: int
    robot: str
    seed: int
    prompt: str  # what the policy read
    color: str  # the block that the episode's own prompt named, and that success is measured for
    success: bool
    ticks: int


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is needed to draw an episode again at any size."""

    result: EpisodeResult
    blocks: np.ndarray  # float64[3, 3], m
    joints: np.ndarray  # float64[ticks + 1, n], rad
    chunks: np.ndarray  # float32[replans, H, n], rad: as predicted
    chunk_ticks: tuple[int, ...]  # when each chunk was predicted


@dataclasses.dataclass(frozen=True)
class Rollout:
    episodes: tuple[EpisodeResult, ...]
    recordings: tuple[Recording, ...]

    @property
    def successes(self) -> int:
        return sum(result.success for result in self.episodes)


@dataclasses.dataclass(frozen=True)
class _Task:
    episode: int
    seed: int
    prompt: str
    color: str


class _Running:
    """One episode in its slot."""

    def __init__(self, env: ReachEnv, task: _Task) -> None:
        self.env, self.task = env, task
        self.ticks, self.done, self.success = 0, False, False
        self.joints: list[np.ndarray] = []
        self.chunks: list[np.ndarray] = []
        self.chunk_ticks: list[int] = []
        env.begin(seed=task.seed, options={"prompt_color": task.color, "prompt": task.prompt})
        self.joints.append(env.joints)

    def noise_seed(self) -> int:
        return int(np.random.SeedSequence([self.task.seed, self.ticks]).generate_state(1)[0])

    def execute(self, chunk: np.ndarray, steps: int) -> None:
        """Runs the first `steps` actions, or fewer if the episode ends before."""
        self.chunks.append(chunk)
        self.chunk_ticks.append(self.ticks)
        for action in chunk[:steps]:
            _, terminated, truncated, _ = self.env.advance(action)
            self.ticks += 1
            self.joints.append(self.env.joints)
            self.success, self.done = terminated, terminated or truncated
            if self.done:
                return

    def result(self) -> EpisodeResult:
        task = self.task
        return EpisodeResult(task.episode, self.env.robot, task.seed, task.prompt, task.color, self.success, self.ticks)

    def recording(self) -> Recording:
        joints, chunks = np.array(self.joints), np.array(self.chunks)
        return Recording(self.result(), self.env.blocks, joints, chunks, tuple(self.chunk_ticks))


def rollout(
    make_env: Callable[[], ReachEnv],
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
        make_env: called `parallel` times at most; have the environments share one ReachScene. They are not closed here.
        act: always gets the same number of observations; rows beyond the running episodes repeat the first one.
        seed: decides blocks, starts, prompts, their permutation, and the policy's noise.
        parallel: environments, and rows of a policy call; fewer if there are fewer episodes.
        execute_steps: actions of a chunk that are executed before the next is asked for.
        prompts: "right": the policy reads each episode's own prompt. "shuffled": the prompts are permuted at random
            among the episodes, and success is still measured for the block that the episode's own prompt named. A
            policy that does as it is told then succeeds about 1 time in 3, by luck; one that ignores its prompt loses
            nothing.
        record: the first so many episodes are recorded.

    Raises:
        InputError: the policy's answer is not float[n, H >= execute_steps, A] and finite.
    """
    shuffled = _is_shuffled(prompts)
    envs = [make_env() for _ in range(min(parallel, episodes))]
    waiting = iter(_tasks(envs[0], episodes, seed, shuffled=shuffled))
    running: list[_Running | None] = [None] * len(envs)
    results: list[EpisodeResult] = []
    recordings: list[Recording] = []
    with tqdm.tqdm(total=episodes, desc=f"{envs[0].robot}, {prompts} prompts", unit="episode") as bar:
        while True:
            running = _fill(running, envs, waiting)
            active = [slot for slot in running if slot is not None]
            if not active:
                break
            for slot, chunk in zip(active, _ask(act, active, len(envs), execute_steps), strict=True):
                slot.execute(chunk, execute_steps)
            for slot in (slot for slot in active if slot.done):
                results.append(slot.result())
                if slot.task.episode < record:
                    recordings.append(slot.recording())
                bar.update()
            bar.set_postfix(success=f"{sum(result.success for result in results)}/{len(results)}", refresh=False)
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
    return max(0.0, centre - half), min(1.0, centre + half)


def _is_shuffled(prompts: str) -> bool:
    if prompts not in ("right", "shuffled"):
        raise InputError(f"prompts: expected right or shuffled, found {prompts!r}")
    return prompts == "shuffled"


def _tasks(env: ReachEnv, episodes: int, seed: int, *, shuffled: bool) -> list[_Task]:
    """Every episode's seed, the prompt that its policy reads and the colour that its own prompt named."""
    seeds = [int(np.random.SeedSequence([seed, _STREAM, episode]).generate_state(1)[0]) for episode in range(episodes)]
    own = [(env.begin(seed=episode_seed)["prompt_color"], env.prompt) for episode_seed in seeds]
    order = np.random.default_rng([seed, _STREAM]).permutation(episodes) if shuffled else np.arange(episodes)
    return [_Task(i, seeds[i], own[order[i]][1], own[i][0]) for i in range(episodes)]


def _fill(running: Sequence[_Running | None], envs: Sequence[ReachEnv], waiting: Iterator[_Task]) -> list[_Running | None]:
    """The slots with episodes that still run, and in the others the next ones that wait."""
    filled: list[_Running | None] = []
    for slot, env in zip(running, envs, strict=True):
        if slot is None or slot.done:
            task = next(waiting, None)
            slot = None if task is None else _Running(env, task)
        filled.append(slot)
    return filled


def _ask(act: Act, active: Sequence[_Running], rows: int, execute_steps: int) -> np.ndarray:
    """One policy call of `rows` rows: float32[len(active), H, A]."""
    observations = [slot.env.observe() for slot in active]
    seeds = [slot.noise_seed() for slot in active]
    missing = rows - len(active)
    chunks = np.asarray(act(observations + observations[:1] * missing, np.array(seeds + seeds[:1] * missing, np.uint32)))
    _check_shape(chunks, rows, execute_steps, active[0].env.action_space.shape[0])
    chunks = chunks[: len(active)]
    bad = np.argwhere(~np.isfinite(chunks))
    if bad.size:
        row, step, joint = bad[0]
        where = f"episode {active[row].task.episode}, tick {active[row].ticks}, chunk step {step}, joint_{joint}"
        raise InputError(f"policy's actions: {where}: expected a finite target in rad, found {chunks[row, step, joint]}")
    return chunks.astype(np.float32)


def _check_shape(chunks: np.ndarray, rows: int, execute_steps: int, joints: int) -> None:
    right = chunks.ndim == 3 and chunks.shape[0] == rows and chunks.shape[1] >= execute_steps and chunks.shape[2] == joints
    if not right or not np.issubdtype(chunks.dtype, np.floating):
        expected = f"float[{rows}, H >= {execute_steps}, {joints}]"
        raise InputError(f"policy's actions: expected {expected}, found {chunks.dtype}{list(chunks.shape)}")
