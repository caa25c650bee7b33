"""Defines a family of simulated tasks, which is one small file, and opens its tasks for rollouts.

    FAMILY = Family(
        name="pusht", record=RECORD, tasks={"pusht": "push the T onto its mark"},
        open=lambda task: PushT(), most_actions=300, protocol="as shipped", image_size=(96, 96),
    )

A file of one's own is named with tasks or groups of tasks: --env=my_family.py:pusht. A family of
the package goes by its name: --env=metaworld:drawer-open,door-open. Simulators run in worker
processes, in an environment that needs neither JAX nor TensorFlow.
"""

import contextlib
import dataclasses
import functools
import runpy
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.sim.video import camera_pictures
from pi0_jax.sim.worlds import Setting

# Where a family in a file of one's own stands, and what its file's name ends in.
VARIABLE, _SUFFIX = "FAMILY", ".py"
# A world's seed holds the place of its task above these bits, and the initial state in them.
_NUMBER_BITS = 32


class Simulator(Protocol):
    """Is the simulator of one task. It is opened in a worker process, and reset for each episode."""

    def reset(self, number: int) -> None:
        """Begins an episode in an initial state; its number decides everything about it."""

    def observe(self) -> Mapping[str, Any]:
        """Returns `images`, uint8[height, width, 3] by the record's cameras, and `state`, float[N]."""

    def step(self, action: np.ndarray) -> bool:
        """Executes float32[A], in the record's units, and returns whether the task is done."""

    def close(self) -> None:
        """Frees what the simulator holds."""


class Usual(NamedTuple):
    """Holds what an evaluation takes that does not say otherwise."""

    episodes: int  # of each task
    seed: int = 0
    parallel: int = 25  # simulators; each may take a gigabyte of memory


_USUAL = Usual(episodes=50)


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes a family of tasks in a simulator.

    Attributes:
        name: what tables call it.
        record: the robot as the simulator has it: cameras, state and actions.
        tasks: the name of a task -> its instruction.
        open: opens the simulator of a task, by its name.
        most_actions: the number of actions after which an episode has failed.
        limits: tasks -> such a number of their own.
        protocol: in words, for the results: cameras, images, how long an action lasts.
        image_size: height and width of an image, for which a server compiles.
        groups: names of several tasks, which may stand after --env's colon.
        initial_states: how many initial states a task has: episode i begins in state i modulo so
            many. 0: any whole number below 2^31 is one, and the seed draws it.
        packages: names of the packages whose versions belong to the results.
        published: who measured, and where that stands -> group or task -> its success in percent.
        usual: the protocol's episodes and seed, and what fits into a machine's memory.
    """

    name: str
    record: Embodiment
    tasks: Mapping[str, str]
    open: Callable[[str], Simulator]
    most_actions: int
    protocol: str
    image_size: tuple[int, int]
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    initial_states: int = 0
    packages: tuple[str, ...] = ()
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    usual: Usual = _USUAL

    def chosen(self, names: str) -> tuple[str, ...]:
        """Returns the tasks of "door-open,mt5": of groups and single ones, each once.

        Raises:
            InputError: there is no such group or task.
        """
        tasks = list[str]()
        for name in names.split(","):
            if name not in self.groups and name not in self.tasks:
                known = ", ".join([*self.groups, *self.tasks])
                raise InputError(f"{self.name}: task {name!r} is unknown; expected one of {known}")
            tasks += self.groups.get(name, (name,))
        return tuple(dict.fromkeys(tasks))

    def limit(self, task: str) -> int:
        """Returns the number of actions after which an episode of a task has failed."""
        return self.limits.get(task, self.most_actions)

    def initial_state(self, seed: int, task: str, episode: int) -> int:
        """Returns the number of an episode's initial state."""
        if self.initial_states:
            return episode % self.initial_states
        return int(stream(seed, task, episode).integers(2**31))


class Chosen(NamedTuple):
    """Holds a family and the tasks that --env names."""

    family: Family
    tasks: tuple[str, ...]


def groups_inside(chosen: Chosen) -> dict[str, tuple[str, ...]]:
    """Returns the family's groups that are a part of the tasks; "all" are the tasks themselves."""
    family, tasks = chosen
    return {
        name: group
        for name, group in family.groups.items()
        if name != "all" and 1 < len(group) < len(tasks) and set(group) < set(tasks)
    }


def stream(seed: int, task: str, *numbers: int) -> np.random.Generator:
    """Returns random numbers that depend on the seed, the task's name and the numbers alone."""
    return np.random.default_rng([seed, zlib.crc32(task.encode()), *numbers])


def names_a_family(env: str) -> bool:
    """Returns whether `env` names a family, of the package or in a file."""
    place, colon, _ = env.partition(":")
    return bool(colon) and (place in _known() or place.endswith(_SUFFIX))


def find(env: str) -> Chosen:
    """Returns the family and the tasks of "metaworld:mt5" or "my_family.py:task".

    Raises:
        InputError: there is no such family, file, group or task.
    """
    place, _, name = env.rpartition(":")
    if place in (known := _known()):
        with installed(place):
            family = known[place].family()
    elif Path(place).is_file():
        try:
            found = runpy.run_path(place).get(VARIABLE)
        except SyntaxError as error:
            raise InputError(f"{place}: line {error.lineno}: {error.msg}") from error
        except ImportError as error:
            raise InputError(f"{place}: {error}, in {sys.executable}") from error
        if not isinstance(found, Family):
            kind = "none" if found is None else type(found).__name__
            raise InputError(f"{place}: expected a Family called {VARIABLE}, found {kind}")
        family = found
    else:
        names = ", ".join(known)
        raise InputError(f"--env={env}: expected a file, or a family of {names}, before the colon")
    return Chosen(family, family.chosen(name))


def file_of(env: str) -> Path:
    """Returns the file of the family that `env` names."""
    place = env.rpartition(":")[0]
    return Path(_known()[place].file if place in _known() else place)


def check_record(family: Family, served: Any) -> None:
    """Checks that a policy's robot is the family's.

    Args:
        family: the family.
        served: the record as a server sends it, or None where it sends none.

    Raises:
        InputError: cameras, state or actions have other names or units, or there is no record.
    """
    if served is None:
        raise InputError(
            "the server does not send its robot's record; expected one of launch.serve"
        )
    ours, theirs = family.record, Embodiment.from_json(served, stored=True)
    for part, expected, found in (
        ("cameras", sorted(ours.cameras.values()), sorted(theirs.cameras.values())),
        ("state", [(d.name, d.unit) for d in ours.state], [(d.name, d.unit) for d in theirs.state]),
        (
            "actions",
            [(d.name, d.unit, d.kind) for d in ours.actions],
            [(d.name, d.unit, d.kind) for d in theirs.actions],
        ),
        ("control_hz", ours.control_hz, theirs.control_hz),
    ):
        if expected != found:
            names = f"{family.name} has {expected}, and the policy's robot {theirs.name} {found}"
            raise InputError(f"{part}: expected the same names and units; {names}")


def opened(family: Family, task: str) -> Simulator:
    """Opens a task's simulator; raises InputError if its package is not installed."""
    with installed(family.name):
        return family.open(task)


@contextlib.contextmanager
def installed(family: str) -> Iterator[None]:
    """Turns a package that the block misses into an InputError that names it and the family."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = f"{family}: the package {error.name} is not installed in {sys.executable}"
        raise InputError(
            f"{missing}; expected the Python of the simulator's environment"
        ) from error


def world_seed(task_number: int, initial_state: int) -> int:
    """Returns what FamilyWorld.begin takes for a task, by its place, in an initial state."""
    return task_number << _NUMBER_BITS | initial_state


@contextlib.contextmanager
def family_setting(env: str) -> Iterator[Setting]:
    """Opens worlds of the tasks that `env` names, which share their simulators."""
    chosen, simulators = find(env), _Simulators()
    with contextlib.closing(simulators):
        yield Setting(lambda: FamilyWorld(chosen, simulators), camera_pictures)


class FamilyWorld:
    """Is a worlds.World that runs any of the chosen tasks; an episode's group is its task."""

    def __init__(self, chosen: Chosen, simulators: "_Simulators") -> None:
        self._family, self._tasks = chosen
        self._simulators = simulators
        self._simulator: Simulator | None = None
        self._task = self._tasks[0]
        self.robot = self._family.record.name
        self.action_names = tuple(dim.name for dim in self._family.record.actions)

    @property
    def prompt(self) -> str:
        return self._family.tasks[self._task]

    @property
    def group(self) -> str:
        return self._task

    def begin(self, seed: int) -> None:
        if self._simulator is not None:
            self._simulators.give_back(self._task, self._simulator)
        place, number = seed >> _NUMBER_BITS, seed & (1 << _NUMBER_BITS) - 1
        self._task = self._tasks[place]
        self._simulator = self._simulators.take(self._family, self._task)
        self._simulator.reset(number)
        self._ticks, self._seen = 0, self._look()
        self._fresh = True

    def observe(self) -> RawObservation:
        if not self._fresh:
            self._seen, self._fresh = self._look(), True
        return self._seen

    def advance(self, action: np.ndarray) -> tuple[bool, bool]:
        assert self._simulator is not None
        success = bool(self._simulator.step(action))
        self._ticks, self._fresh = self._ticks + 1, False
        return success, success or self._ticks >= self._family.limit(self._task)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """Returns the images that the policy saw last."""
        return tuple(self._seen["images"].values())

    def _look(self) -> RawObservation:
        assert self._simulator is not None
        seen, cameras = self._simulator.observe(), self._family.record.cameras.values()
        images = {camera: np.array(seen["images"][camera]) for camera in cameras}
        return {"images": images, "state": np.asarray(seen["state"]), "prompt": self.prompt}


class _Simulators:
    """Lends simulators: those that wait for an episode of the same task are used again."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, Simulator]] = []
        self._lent: list[Simulator] = []

    def take(self, family: Family, task: str) -> Simulator:
        waiting = [place for place, (name, _) in enumerate(self._idle) if name == task]
        if not waiting:
            # Rows go from task to task together: what waits for another is hardly used again.
            self._close_idle()
        simulator = self._idle.pop(waiting[0])[1] if waiting else opened(family, task)
        self._lent.append(simulator)
        return simulator

    def give_back(self, task: str, simulator: Simulator) -> None:
        self._lent = [one for one in self._lent if one is not simulator]
        self._idle.append((task, simulator))

    def close(self) -> None:
        """Closes all simulators, also those that are lent."""
        self._idle += [("", simulator) for simulator in self._lent]
        self._lent = []
        self._close_idle()

    def _close_idle(self) -> None:
        for _, simulator in self._idle:
            simulator.close()
        self._idle = []


class _Known(NamedTuple):
    """Is a family of the package: the file that defines it, and what makes it."""

    file: str
    family: Callable[[], Family]


def _known() -> Mapping[str, _Known]:
    """Returns the package's families; their files import their simulators only when one opens."""
    from pi0_jax.sim import libero, metaworld

    named = {
        name: _Known(
            str(metaworld.__file__), functools.partial(metaworld.FAMILIES.__getitem__, name)
        )
        for name in metaworld.FAMILIES
    }
    return named | {"libero": _Known(str(libero.__file__), libero.family)}
