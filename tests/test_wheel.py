"""The wheel works in an environment of its own and outside the repository.

It installs one name, and has every command and every recipe.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.errors import EXTRAS
from pi0_jax.serve.client import Client
from tests import policies, training
from tests.numpy_server import wait_for
from tests.training import ROOT, environment, saved_steps

data_dir = training.data_dir


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """Returns the site-packages of an environment that has the wheel.

    It finds everything else where this environment has it.
    """
    folder = tmp_path_factory.mktemp("wheel")
    # A build leaves folders where it runs, and packs what an earlier one has left there.
    sources = folder / "sources"
    for name in ("pi0_jax", "launch", "configs"):
        shutil.copytree(
            ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", sources]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "env", symlinks=True)
    python = folder / "env/bin/python"
    subprocess.run(
        [*pip, f"--python={python}", "install", "--no-deps", "--no-index", wheel], check=True
    )
    (found,) = (folder / "env").glob("lib/python*/site-packages")
    # Folders alone are listed: this environment's own .pth files, such as that of an editable
    # pi0_jax, are not followed. The list is written last, because pip would install nothing where
    # it sees the same version.
    others = [path for path in sys.path if path.endswith("-packages")]
    (found / "others.pth").write_text("\n".join(others))
    return found


@pytest.fixture(scope="module")
def distribution(packages) -> Distribution:
    (found,) = [one for one in distributions(path=[str(packages)]) if one.name == "pi0_jax"]
    return found


class Commands:
    """Runs the console scripts in an empty folder, on one device, with quick compilation."""

    def __init__(self, packages: Path, folder: Path) -> None:
        self._bin, self._folder = packages.parents[2] / "bin", folder
        self._env = environment(1)
        self._env.pop("PYTHONPATH", None)

    def start(self, name: str, *flags: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self._bin / name, *flags], cwd=self._folder, env=self._env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, name: str, *flags: str, status: int = 0) -> str:
        process = self.start(name, *flags)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, err
        return out


@pytest.fixture(scope="module")
def commands(packages, tmp_path_factory) -> Commands:
    return Commands(packages, tmp_path_factory.mktemp("elsewhere"))


def test_only_one_name_is_installed(packages, distribution):
    names = {"pi0_jax", f"pi0_jax-{distribution.version}.dist-info"}
    assert {file.parts[0] for file in distribution.files} == names | {".."}  # ../../../bin
    assert {path.name for path in packages.iterdir()} == names | {"others.pth"}


def test_no_file_is_left_out(distribution):
    """Assets, py.typed and the launchers for clusters are there, too."""
    folders = {"pi0_jax": "pi0_jax", "launch": "pi0_jax/launch", "configs": "pi0_jax/configs"}
    expected = {
        f"{installed}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in folders.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    } - {"pi0_jax/launch/benchmark.py"}  # which needs benchmarks/
    found = {str(file) for file in distribution.files if file.parts[0] == "pi0_jax"}
    assert {file for file in found if "__pycache__" not in file} == expected


def test_every_command_is_a_console_script(distribution):
    commands = [
        file.stem
        for file in (ROOT / "launch").glob("*.py")
        if file.stem != "benchmark"
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    ]
    assert {script.name: script.value for script in distribution.entry_points} == {
        f"pi0-{name.replace('_', '-')}": f"pi0_jax.launch.{name}:main" for name in commands
    }


def test_a_package_that_is_missing_is_looked_for_in_the_right_extra(distribution):
    needed = [
        (re.match(r"[\w-]+", line).group(), extra.group(1))
        for line in distribution.requires
        if (extra := re.search(r"extra == ['\"](\w+)", line))
    ]
    optional = {pair for pair in needed if pair[1] not in ("dev", "docs", "tpu", "cuda")}
    optional.remove(("tensorflow-cpu", "data"))  # the same module as tensorflow
    assert {(module.replace("_", "-"), extra) for module, extra in EXTRAS.items()} == optional


def test_help_of_a_console_script_lists_its_flags(commands):
    said = commands.run("pi0-index", "--help", status=1)  # as absl has it
    assert said.startswith("Builds or opens the indices")
    assert {"--config", "--data_dir", "--report"} <= {
        word.rstrip(":") for word in said.split() if word.startswith("--")
    }


@pytest.mark.slow
def test_it_trains_serves_and_evaluates(commands, data_dir, tmp_path):
    workdir = tmp_path / "run"
    flags = training.command(
        data_dir, workdir, file="reach", steps=3, validate_every=9, save_every=3, sampling_steps=2
    )[3:]
    commands.run("pi0-train", *flags)
    assert saved_steps(workdir) == [3]

    rolled_out = ["--robots=reach_arm3", "--episodes=1", "--parallel=1", "--record=1"]
    commands.run(
        "pi0-evaluate", f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}", *rolled_out
    )
    rows = json.loads((tmp_path / "out/evaluation.json").read_text())["rows"]
    assert [(row["robot"], row["episodes"]) for row in rows if row["group"] == "all"] == [
        ("reach_arm3", 1)
    ]
    assert [file.name for file in (tmp_path / "out/rollouts").iterdir()] == [
        "reach_arm3-right-0.gif"
    ]

    server = commands.start(
        "pi0-serve",
        f"--checkpoint={workdir}",
        "--port=0",
        "--image_sizes=64x64",
    )
    try:
        with Client(wait_for(server, "warm")) as client:
            (chunk,) = client.act([policies.observation("reach_arm3", size=(64, 64))])
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 0
    assert chunk.shape == (5, 3) and chunk.dtype == np.float32 and np.isfinite(chunk).all()
