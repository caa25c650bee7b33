"""Chooses the OpenGL library for MuJoCo's off-screen rendering, and keeps TensorFlow away from it.

    MUJOCO_GL is set               that library
    a GPU, and EGL renders         egl, on the GPU
    OSMesa renders                 osmesa, in software (quicker than EGL's for small images)
    EGL renders                    egl, in software
    nothing renders                disable: physics works, rendering raises InputError

Mesa's software drivers and TensorFlow bring a copy of LLVM each, and a process that loads both may
end in a segmentation fault. So no process has both. Rendering happens in worker processes that
never import TensorFlow (workers.py, demonstrations.py); a process that has one of the two and is
asked for the other gets an InputError from this module.

MuJoCo loads its OpenGL library when it is imported: import it within `importing_mujoco`.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pi0_jax.errors import InputError, optional_packages

Library = Literal["egl", "osmesa"]

_GPU_NODES = ("/dev/nvidia0", "/dev/dri")
_OFF = ("disable", "disabled", "off", "false", "0")
_TRY_SECONDS = 60
_TRY = """
import mujoco
scene = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(scene, 8, 8)
renderer.update_scene(mujoco.MjData(scene))
renderer.render()
"""
_INSTALL = (
    "install an off-screen OpenGL library (Debian, Ubuntu: apt-get install libosmesa6, or libegl1"
    " libegl-mesa0 libgl1-mesa-dri where that package no longer exists)"
)


def choose(
    environ: Mapping[str, str],
    *,
    exists: Callable[[str], bool] = os.path.exists,
    renders: Callable[[Library], bool] | None = None,
) -> str:
    """Returns the value that MUJOCO_GL should have on this machine.

    Args:
        environ: the environment variables. A MUJOCO_GL that is set and not empty is respected.
        exists: says whether a device file exists.
        renders: says whether a library renders; None tries it.
    """
    if environ.get("MUJOCO_GL"):
        return environ["MUJOCO_GL"]
    if sys.platform != "linux":
        # MuJoCo has only one way there.
        return ""
    renders = _renders if renders is None else renders
    order: tuple[Library, ...] = ("osmesa", "egl")
    if any(exists(node) for node in _GPU_NODES):
        order = ("egl", "osmesa")
    return next((library for library in order if renders(library)), "disable")


def prepare_workers() -> None:
    """Sets MUJOCO_GL for the processes that this one starts, and loads nothing here.

    Without MuJoCo it does nothing: other simulators draw in other ways, and one of MuJoCo's says in
    its worker what is missing.
    """
    try:
        version("mujoco")
    except PackageNotFoundError:
        return
    os.environ["MUJOCO_GL"] = choose(os.environ)


def require() -> None:
    """Raises InputError if MUJOCO_GL is "disable" or so, because nothing renders or by choice."""
    if _is_off():
        found = os.environ["MUJOCO_GL"]
        raise InputError(f"rendering is off (MUJOCO_GL={found}): {_INSTALL}, or unset MUJOCO_GL")


@contextlib.contextmanager
def importing_mujoco() -> Iterator[None]:
    """Imports MuJoCo with the chosen OpenGL library; from then on this process refuses TensorFlow.

    If MuJoCo was imported before, it keeps the library that it has.

    Raises:
        InputError: MuJoCo is not installed, TensorFlow is loaded already, or the library does not
            open.
    """
    if "mujoco" not in sys.modules:
        os.environ["MUJOCO_GL"] = choose(os.environ)
        if not _is_off() and "tensorflow" in sys.modules:
            fault = "this process has loaded TensorFlow, beside which OpenGL may crash"
            own = "a process of its own (pi0_jax.sim.workers has them)"
            raise InputError(f"{fault}: expected rendering in {own}")
    try:
        with optional_packages():
            yield
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        raise not_opened(error) from error
    if not _is_off() and not any(isinstance(finder, _NoTensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoTensorFlow())


def not_opened(error: BaseException | str) -> InputError:
    """Returns the error for a library that does not open, with what to do."""
    found = f"OpenGL does not open (MUJOCO_GL: {os.environ.get('MUJOCO_GL') or 'not set'})"
    return InputError(f"{found}: {error}; {_INSTALL}, or unset MUJOCO_GL to have one chosen")


class _NoTensorFlow:
    """Refuses TensorFlow when it is imported, and lets libraries ask whether it is installed.

    As a finder of sys.meta_path it is asked for every module's place, and then loads what it found.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "tensorflow":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs: Iterator[Any] = (finder.find_spec(name, path, target) for finder in others)
        if (spec := next(filter(None, specs), None)) is not None:
            spec.loader = self
        return spec

    def create_module(self, spec: Any) -> None:
        """Leaves it to Python to make the module."""

    def exec_module(self, module: Any) -> None:
        fault = "this process has loaded OpenGL, beside which TensorFlow may crash"
        raise InputError(f"{fault}: expected RLDS files to be read or written in another process")


def _is_off() -> bool:
    return os.environ.get("MUJOCO_GL", "").strip().lower() in _OFF


def _renders(library: Library) -> bool:
    """Returns whether a library renders in a process of its own, which a broken driver may end."""
    with optional_packages():
        # MuJoCo is looked for, but not imported.
        version("mujoco")
    environ = {**os.environ, "MUJOCO_GL": library}
    command = [sys.executable, "-c", _TRY]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=_TRY_SECONDS)
    return done.returncode == 0
