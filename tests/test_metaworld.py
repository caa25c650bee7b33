"""Meta-World: its tasks and groups, and, where its environment is, experts, images and rollouts.

PI0_JAX_METAWORLD_PYTHON names the Python of `make metaworld-env`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.data.datasets import ROWS
from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.sim.benchmark import families
from pi0_jax.sim.metaworld.tasks import GROUPS, INSTRUCTIONS

ROOT = Path(__file__).parent.parent
SIMULATOR = os.environ.get("PI0_JAX_METAWORLD_PYTHON", "")
with_simulator = pytest.mark.skipif(
    not SIMULATOR,
    reason="PI0_JAX_METAWORLD_PYTHON names no Python of make metaworld-env",
)
DIFFICULTIES = ("easy", "medium", "hard", "very hard")


def test_every_task_has_one_difficulty_and_its_own_sentence():
    tasks = [task for name in DIFFICULTIES for task in GROUPS[name]]
    assert sorted(tasks) == sorted(INSTRUCTIONS) and len(tasks) == 50
    assert [len(GROUPS[name]) for name in DIFFICULTIES] == [28, 11, 6, 5]
    assert len(set(INSTRUCTIONS.values())) == 50
    assert set(GROUPS["mt1"]) < set(GROUPS["mt5"]) < set(GROUPS["mt10"]) < set(GROUPS["mt50"])


@pytest.mark.skipif(
    not os.environ.get("LEROBOT_PYTHON"),
    reason="LEROBOT_PYTHON names no Python that has lerobot (tests/test_import_lerobot_published.py)",
)
def test_difficulties_are_those_of_lerobot():
    code = (
        "from importlib.util import find_spec; from pathlib import Path\n"
        "folder = Path(find_spec('lerobot').submodule_search_locations[0])\n"
        "print((folder / 'envs' / 'metaworld_config.json').read_text())"
    )
    command = [os.environ["LEROBOT_PYTHON"], "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)["DIFFICULTY_TO_TASKS"]
    assert {name: {f"{task}-v3" for task in GROUPS[name]} for name in DIFFICULTIES} == {
        name.replace("_", " "): set(tasks) for name, tasks in theirs.items()
    }


def test_the_recipe_reads_every_instruction_whole():
    from configs.metaworld import get_config

    tokenizer = Tokenizer.open("small")
    most = max(len(tokenizer.pieces(text)) for text in INSTRUCTIONS.values())
    assert most <= get_config("mt10").max_tokens


def test_the_two_protocols_are_told_apart_by_their_records():
    every, held = (families.find(f"{name}:mt5").family for name in ("metaworld", "metaworld_held"))
    assert (every.record.control_hz, held.record.control_hz) == (80.0, 16.0)
    assert (every.most_actions, held.most_actions) == (500, 100)
    assert every.record is EMBODIMENTS["metaworld"] is ROWS["metaworld"].embodiment
    assert held.record is EMBODIMENTS["metaworld_held"] is ROWS["metaworld_held"].embodiment
    with pytest.raises(families.InputError, match="control_hz"):
        families.check_record(every, held.record.to_json())


@pytest.mark.parametrize(
    "answer", ["", "import pickle\nwrite(pickle.dumps(([b'x' * 99], 1))[:-9])"]
)
def test_a_simulator_that_dies_ends_the_command(answer, tmp_path):
    """Nothing waits for a process that is gone, whether it answered nothing or half."""
    python = tmp_path / "python"
    text = f"#!{sys.executable}\nimport sys\nwrite = sys.stdout.buffer.write\n{answer}\n"
    python.write_text(text + "sys.stdout.flush()\nsys.exit(3)\n")
    python.chmod(0o755)
    command = [
        sys.executable, "-m", "launch.make_metaworld_data", f"--simulator_python={python}",
        f"--data_dir={tmp_path / 'data'}", "--tasks=mt10", "--workers=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "a simulator's process ended with status 3" in done.stderr.splitlines()[-1]


def test_data_without_their_experts_are_named(tmp_path):
    from pi0_jax.sim.metaworld.data import EXPERT_FILE, write_metaworld_data

    settings = {"revision": 1, "tasks": ["reach"], "train": 1, "val": 1, "seed": 0}
    folder = tmp_path / "metaworld_held" / "1.0.0"
    folder.mkdir(parents=True)
    found = {"noise": 0.0, "side": 64}
    (folder / "metadata.json").write_text(json.dumps(settings | found))
    with pytest.raises(families.InputError, match=f"{EXPERT_FILE}: expected it beside the data"):
        write_metaworld_data(
            tmp_path, "python", ["reach"], protocol="metaworld_held", episodes=1, val_episodes=1,
            seed=0, noise=0.0, side=0,
        )  # fmt: skip


def simulated(code: str) -> list[str]:
    """Runs code in the simulator's Python, and returns the lines that it prints."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [SIMULATOR, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@with_simulator
def test_the_tasks_are_those_of_the_package_and_need_no_jax():
    lines = simulated(
        "import sys; from pi0_jax.sim.metaworld import HELD, Sawyer; Sawyer('reach', HELD)\n"
        "import launch.evaluate\n"
        "from metaworld.env_dict import ALL_V3_ENVIRONMENTS as known\n"
        "print(*sorted(name.removesuffix('-v3') for name in known))\n"
        "print({'jax', 'tensorflow', 'flax'} & set(sys.modules))"
    )
    assert lines == [" ".join(sorted(INSTRUCTIONS)), "set()"]


@with_simulator
def test_an_episode_is_decided_by_its_number_alone():
    """A used simulator, another task's in between and a fresh one give the same states and images."""
    (same,) = simulated(
        "import numpy as np; from pi0_jax.sim.metaworld import HELD, Sawyer\n"
        "def play(one, number):\n"
        "    one.reset(number)\n"
        "    for action in np.random.default_rng(0).uniform(-1, 1, (12, 4)): one.step(action)\n"
        "    seen = one.observe(); return one.seen, seen['images']['corner2']\n"
        "used, other = Sawyer('drawer-open', HELD), Sawyer('window-open', HELD)\n"
        "play(used, 1); play(other, 2); first = play(used, 7)\n"
        "fresh = play(Sawyer('drawer-open', HELD), 7)\n"
        "print([bool(np.array_equal(a, b)) for a, b in zip(first, fresh)],"
        " first[1].shape, first[1].std() > 10)"
    )
    assert same == "[True, True] (64, 64, 3) True"


@with_simulator
def test_experts_write_the_same_bytes_whatever_the_workers(tmp_path):
    """The expert of reach needs the goal: with a goal of 0 it would never succeed."""
    from pi0_jax.sim.metaworld.data import EXPERT_FILE, write_metaworld_data

    how = dict(protocol="metaworld_held", episodes=3, val_episodes=1, seed=0, noise=0.15, side=0)
    files = []
    for workers in (1, 2):
        folder, written = write_metaworld_data(
            tmp_path / str(workers), SIMULATOR, ("reach", "drawer-open"), **how, workers=workers
        )
        assert written
        files.append({file.name: file.read_bytes() for file in folder.iterdir()})
        expert = json.loads((folder.parent / EXPERT_FILE).read_text())
        assert expert["reach"]["successes"] == expert["drawer-open"]["successes"] == 4
    assert files[0] == files[1]


@pytest.mark.slow
@with_simulator
def test_a_served_policy_is_measured_where_the_simulator_is(tmp_path):
    """The whole path in miniature: data, training, a server of this Python, and the table, twice."""
    command = [
        sys.executable, "-m", "launch.metaworld", f"--simulator_python={SIMULATOR}", "--smoke",
        f"--output={tmp_path}", "--group=mt1",
    ]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environ, check=True)
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert {row["condition"] for row in found["rows"]} == {
        "right", "black", "untrained", "nearest_state", "nearest_pixels"
    }  # fmt: skip
    assert np.isfinite([row["interval"] for row in found["rows"]]).all()
    assert (tmp_path / "report" / "index.html").is_file()
