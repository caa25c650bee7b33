"""The right OpenGL library renders, and none shares a process with TensorFlow."""

import os
import sys
from pathlib import Path

import pytest

from pi0_jax.errors import InputError
from pi0_jax.sim import gl
from tests import own_process

ROOT = Path(__file__).parents[1]
RENDER = """
from pi0_jax.sim.reach import ReachEnv
env = ReachEnv('reach_arm3')
env.reset(seed=0)
"""
LOADED = """
import re
print(re.findall('libOSMesa|libEGL|libtensorflow', open('/proc/self/maps').read()))
"""


def python(program, **environ):
    """Runs a program in a fresh interpreter in which no OpenGL is chosen yet."""
    unset = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    return own_process.python("-c", program, status=None, env=clean | environ)


@pytest.mark.parametrize(
    ("environ", "device", "libraries", "chosen"),
    [
        ({"MUJOCO_GL": "egl"}, False, (), "egl"),  # what is set is respected
        ({}, True, ("egl", "osmesa"), "egl"),  # a GPU
        ({}, True, ("osmesa",), "osmesa"),  # a GPU without a driver for OpenGL
        ({}, False, ("egl", "osmesa"), "osmesa"),
        ({}, False, ("egl",), "egl"),
        ({"MUJOCO_GL": ""}, False, (), "disable"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="there is no choice elsewhere")
def test_gl_is_chosen_by_what_renders(environ, device, libraries, chosen):
    found = gl.choose(
        environ, exists=lambda path: device and path == "/dev/dri", renders=libraries.__contains__
    )
    assert found == chosen


CAUGHT = """
from pi0_jax.errors import InputError
try:
    {}
except InputError as error:
    print("InputError:", error)
"""


def caught(program):
    return CAUGHT.format("\n    ".join(program.strip().splitlines()))


def test_without_gl_physics_works_and_rendering_is_an_input_error():
    program = """
import numpy as np
from pi0_jax.sim.reach import ReachEnv
env = ReachEnv("reach_arm3")
env.begin(seed=0)
env.advance(env.joints)
print("physics works")
env.observe()
"""
    done = python(caught(program), MUJOCO_GL="disable")
    assert done.stdout.startswith("physics works\nInputError: rendering is off"), done.stderr
    assert "MUJOCO_GL=disable" in done.stdout and "apt-get install libosmesa6" in done.stdout


def test_a_library_that_is_missing_is_named():
    """Outside Windows MuJoCo has no such way, so it ends in the same line as a missing library."""
    done = python(caught(RENDER), MUJOCO_GL="wgl")
    assert done.stdout.startswith("InputError: OpenGL does not open (MUJOCO_GL: wgl)"), done.stderr


def test_without_mujoco_its_extra_is_named(monkeypatch):
    program = "import sys; sys.modules['mujoco'] = None" + caught(RENDER)
    done = python(program, MUJOCO_GL="egl")
    assert done.stdout.startswith("InputError: the package mujoco is not installed"), done.stderr
    assert "'pi0_jax[sim]'" in done.stdout

    # nor does a machine without it count as one without OpenGL
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match="the package mujoco is not installed"):
        gl.choose({}, exists=lambda path: False)


@pytest.mark.parametrize("tensorflow", ["tensorflow", "tensorflow_datasets"])
def test_a_process_that_renders_refuses_tensorflow(tensorflow):
    use = {
        "tensorflow": "import tensorflow",
        "tensorflow_datasets": "from pi0_jax.data import write\n"
        "write.write_rlds('/nowhere', 'x', '1.0.0', steps={}, metadata={}, splits={'train': []})",
    }[tensorflow]
    done = python(RENDER + caught(use) + "env.reset(seed=1); env.close()" + LOADED)
    assert done.returncode == 0, done.stderr
    said, loaded = done.stdout.splitlines()
    assert said.startswith("InputError: this process has loaded OpenGL")
    assert "libtensorflow" not in loaded


def test_a_process_that_renders_may_ask_whether_tensorflow_is_installed():
    """The library that opens a checkpoint's folder asks so."""
    asked = "\nimport importlib.util; print(importlib.util.find_spec('tensorflow') is not None)"
    done = python(RENDER + asked + asked.replace("tensorflow", "tensorflaw"))
    assert (done.returncode, done.stdout) == (0, "True\nFalse\n"), done.stderr


def test_a_process_with_tensorflow_refuses_to_render():
    done = python("import tensorflow" + caught(RENDER) + LOADED)
    assert done.returncode == 0, done.stderr
    said, loaded = done.stdout.splitlines()
    assert said.startswith("InputError: this process has loaded TensorFlow")
    assert "libOSMesa" not in loaded and "libEGL" not in loaded


def test_an_environment_that_nobody_closed_ends_in_silence():
    done = python(RENDER)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_command_loads_opengl_by_importing_its_modules():
    """Only worker processes load it: not the commands, nor what a test imports of the package."""
    files = [*(ROOT / "launch").glob("*.py"), *(ROOT / "pi0_jax").rglob("*.py")]
    rendering = {"pi0_jax.sim.scene", "pi0_jax.sim.reach", "pi0_jax.sim.expert"}
    # They import TensorFlow and vla-eval at once.
    optional = {"benchmarks.tfdata", "pi0_jax.serve.vla_eval"}
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in files
    }
    program = f"""
import importlib
from absl.flags import FLAGS
for name in {sorted(modules - rendering - optional)}:
    importlib.import_module(name)
    # Two commands may have flags of the same name; some are defined in files that they share.
    for owner in (name, "launch.shared", "launch.recipes", "launch.families", "launch.worlds"):
        FLAGS.remove_flag_values([flag.name for flag in FLAGS.get_flags_for_module(owner)])
"""
    loaded = "import sys; print([m for m in ('mujoco', 'tensorflow') if m in sys.modules])"
    done = python(f"{program}\n{loaded}{LOADED}")
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr
