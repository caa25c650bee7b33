"""Runs environments in worker processes, while the policy runs in the process that asks them.

    this process     act on B observations          act on B observations         ...
                       |              ^               |              ^
                       | chunks       | observations  | chunks       |
                       v              |               v              |
    worker 0         physics, then rendering of slots 0, 2, 4 ...
    worker 1         physics, then rendering of slots 1, 3, 5 ...

A slot holds one world and the episode that runs in it. Workers import neither JAX nor TensorFlow:
OpenGL must not share a process with TensorFlow (gl.py), and a worker starts in about a second.
"""

import contextlib
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

import cloudpickle
import loky.backend
import numpy as np

from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.sim import gl
from pi0_jax.sim.video import save_gif
from pi0_jax.sim.worlds import Episode, EpisodeResult, Recording, Setting, World

# Opens a setting in a worker. It is sent there, so it is a function of a module or a partial of
# one.
OpenSetting: TypeAlias = Callable[[], AbstractContextManager[Setting]]
Result = TypeVar("Result")

# A worker that should end is killed after this time.
_END_SECONDS = 10.0


class Opened(NamedTuple):
    """Holds what is known of the worlds of a setting: the robot and its action dimensions."""

    robot: str
    action_names: tuple[str, ...]


class Workers:
    """Holds processes that run the slots of rollouts; as a context manager it ends them."""

    def __init__(self, count: int | None = None) -> None:
        """Starts the processes.

        Args:
            count: how many; None starts one for each core that this process may use.

        Raises:
            InputError: `count` is less than 1.
        """
        count = loky.cpu_count() if count is None else count
        if count < 1:
            raise InputError(f"worker processes: expected at least 1, found {count}")
        gl.prepare_workers()
        # The processes are fresh interpreters, without what this process's main module imports.
        context = loky.backend.get_context("loky")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,))
            process.daemon = True
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def count(self) -> int:
        """Returns the number of processes."""
        return len(self._processes)

    def open(self, setting: OpenSetting) -> Opened:
        """Opens worlds of a kind in every worker, in place of those that it had; raises as `ask`."""
        return self.ask(Slots.open, [(setting,)] * self.count)[0]

    def ask(
        self, method: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Result]:
        """Calls a method of every worker's Slots at the same time, with each worker's arguments.

        Raises:
            InputError: a worker has raised it, or a worker has ended.
        """
        for worker, given in enumerate(arguments):
            try:
                # cloudpickle sends functions of the main module by value: workers do not have it.
                self._pipes[worker].send_bytes(cloudpickle.dumps((method, given)))
            except BrokenPipeError as error:
                raise self._ended(worker) from error
        answers = [self._receive(worker) for worker in range(self.count)]
        for answer in answers:
            if isinstance(answer, InputError):
                raise answer
        return answers

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            # A worker that waits for its next task ends when its pipe is closed.
            pipe.close()
        for process in self._processes:
            process.join(_END_SECONDS)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)  # loky's processes have no kill()
                process.join()

    def _receive(self, worker: int) -> Any:
        try:
            return self._pipes[worker].recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._ended(worker) from error

    def _ended(self, worker: int) -> Exception:
        process = self._processes[worker]
        process.join(_END_SECONDS)
        code = process.exitcode
        if code == -signal.SIGKILL:
            return InputError(
                f"worker process {worker} was killed (SIGKILL), as Linux does where memory ends:"
                " run fewer environments side by side"
            )
        if code is not None and code < 0:
            return gl.not_opened(
                f"a process that renders was ended by {signal.Signals(-code).name}"
            )
        return InputError(f"worker process {worker} has ended with status {code}, as said above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Slots:
    """Is a worker's half: it runs the episodes in its slots."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._setting: Setting | None = None
        # The world that told what the setting is, until a slot takes it.
        self._spare: list[World] = []
        self._worlds: dict[int, World] = {}  # slot -> its world
        self._running: dict[int, _Running] = {}  # slot -> its episode
        self._recordings: list[Recording] = []

    def open(self, setting: OpenSetting) -> Opened:
        """Closes the worlds that there are, and opens a new kind of them."""
        self.close()
        self._setting = self._closing.enter_context(setting())
        world = self._setting.make_world()
        self._spare = [world]
        return Opened(world.robot, tuple(world.action_names))

    def close(self) -> None:
        """Closes all worlds and forgets the recordings."""
        self._spare, self._worlds, self._running, self._recordings = [], {}, {}, []
        self._closing.close()

    def prompts(self, seeds: Sequence[int]) -> list[str]:
        """Returns the prompt of each of these episodes, before any slot has begun one."""
        found, (world,) = [], self._spare
        for seed in seeds:
            world.begin(seed)
            found.append(world.prompt)
        return found

    def begin(self, episodes: Mapping[int, Episode]) -> dict[int, None]:
        """Begins an episode in each of these slots."""
        for slot, episode in episodes.items():
            if slot not in self._worlds:
                spare = self._spare.pop() if self._spare else self._opened().make_world()
                self._worlds[slot] = spare
            self._running[slot] = _Running(self._worlds[slot], episode)
        return {}

    def observe(self, slots: Iterable[int]) -> dict[int, RawObservation]:
        """Returns what the policy sees in each of these slots."""
        return {slot: self._running[slot].observe() for slot in slots}

    def execute(self, chunks: Mapping[int, np.ndarray], steps: int) -> dict[int, EpisodeResult]:
        """Runs the first `steps` actions of each slot's chunk, float32[H, A].

        Returns:
            The results of the slots whose episodes have ended.
        """
        results = {}
        for slot, chunk in chunks.items():
            running = self._running[slot]
            result = running.execute(chunk, steps)
            if result is not None:
                results[slot] = result
                if running.episode.record:
                    self._recordings.append(running.recording(result))
        return results

    def recordings(self) -> list[Recording]:
        """Returns the recordings of the episodes that have ended here."""
        return self._recordings

    def save_videos(self, directory: Path, name: str, tick_seconds: float) -> None:
        """Draws every recording as directory/<name>-<episode>.gif."""
        for recording in self._recordings:
            path = directory / f"{name}-{recording.result.episode}.gif"
            pictures = self._opened().pictures(recording)
            save_gif(path, recording, pictures, tick_seconds=tick_seconds)

    def save_some(self, paths: Mapping[int, Path], tick_seconds: float) -> None:
        """Draws the recordings of some episodes, by number, at these paths, and forgets all."""
        recordings, self._recordings = self._recordings, []
        for recording in recordings:
            if (path := paths.get(recording.result.episode)) is not None:
                pictures = self._opened().pictures(recording)
                save_gif(path, recording, pictures, tick_seconds=tick_seconds)

    def _opened(self) -> Setting:
        if self._setting is None:
            raise InputError("a rollout: expected a setting that is open, found none")
        return self._setting


class _Running:
    """Runs an episode in its slot, and keeps what draws it."""

    def __init__(self, world: World, episode: Episode) -> None:
        self.episode, self._world = episode, world
        self._ticks = 0
        self._snapshots: list[Any] = []
        self._chunks: list[np.ndarray] = []
        self._chunk_ticks: list[int] = []
        world.begin(episode.seed)
        self._prompt = self._told()
        self._group = world.group
        self._keep()

    def observe(self) -> RawObservation:
        return {**self._world.observe(), "prompt": self._told()}

    def _told(self) -> str:
        return self._world.prompt if self.episode.prompt is None else self.episode.prompt

    def execute(self, chunk: np.ndarray, steps: int) -> EpisodeResult | None:
        self._chunks.append(chunk)
        self._chunk_ticks.append(self._ticks)
        for action in chunk[:steps]:
            success, done = self._world.advance(action)
            self._ticks += 1
            self._keep()
            if done:
                number, seed, _, _ = self.episode
                said = self._world.robot, seed, self._prompt, self._group
                return EpisodeResult(number, *said, success, self._ticks)
        return None

    def recording(self, result: EpisodeResult) -> Recording:
        snapshots, ticks = tuple(self._snapshots), tuple(self._chunk_ticks)
        return Recording(result, snapshots, np.array(self._chunks), ticks)

    def _keep(self) -> None:
        if self.episode.record:
            self._snapshots.append(self._world.snapshot())


def _work(pipe: Connection) -> None:
    """Answers what is asked through the pipe, until its other end is closed."""
    # Ctrl-C ends the process that asks, and then this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.closing(Slots()) as slots, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            method, arguments = pickle.loads(pipe.recv_bytes())
            try:
                answer = method(slots, *arguments)
            except InputError as error:
                answer = error
            pipe.send(answer)
