"""A family of tasks is one file; its results depend on seed, task, episode and policy alone."""

import contextlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.errors import InputError
from pi0_jax.sim.benchmark import EPISODES_FILE, Plan, families, measure, table
from pi0_jax.sim.benchmark.controls import Neighbours, small_images

ROOT = Path(__file__).parent.parent
FILE = str(ROOT / "tests" / "point_family.py")
PLAN = Plan(
    f"{FILE}:both", ("right", "shuffled", "black"), 6, 0, batch=4, execute_steps=2, source=""
)
NEEDED = ("absl", "cloudpickle", "loky", "msgpack", "numpy", "PIL", "tqdm", "websockets")
OPTIONAL = ("psutil", "cython_runtime")  # what others import where it is there


def told(observations, seeds):
    """Goes where the prompt says, by steps that the image and the noise decide a little."""
    chunks = np.zeros((len(observations), 3, 1), np.float32)
    for row, (one, seed) in enumerate(zip(observations, seeds, strict=True)):
        bright = one["images"]["front"].mean() / 255
        pace = 0.06 + 0.2 * bright + 0.02 * np.random.default_rng(seed).random()
        chunks[row] = pace if "right" in one["prompt"] else -pace
    return chunks


@contextlib.contextmanager
def policy(condition):
    from pi0_jax.sim.benchmark.controls import black

    yield black(told) if condition == "black" else told


def lines(folder):
    return sorted((folder / EPISODES_FILE).read_text().splitlines()[1:])


def rows(found):
    return {(row["condition"], row["group"]): row["successes"] for row in found["rows"]}


def test_a_table_with_controls(tmp_path):
    found = measure(PLAN, policy, tmp_path, workers=1)
    counts = rows(found)
    assert counts["right", "all"] == counts["right", "left"] + counts["right", "right"] > 6
    assert counts["shuffled", "all"] == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"] == found["rows"]
    assert {
        "protocol",
        "versions",
        "seed",
        "batch",
        "policies",
        "rows",
        "env",
        "execute_steps",
    } <= found.keys()
    assert "right" in table(found["rows"]).splitlines()[0]
    assert len(list((tmp_path / "rollouts").glob("shuffled-left-failure-*.gif"))) == 1


def test_results_do_not_depend_on_workers_on_other_episodes_or_on_a_kill(tmp_path):
    """One worker and two, fewer episodes, and a run that was cut within a line, are the same."""
    for name in ("one", "two", "few", "cut"):
        (tmp_path / name).mkdir()
    measure(PLAN, policy, tmp_path / "one", workers=1)
    measure(PLAN, policy, tmp_path / "two", workers=2)
    whole = lines(tmp_path / "one")
    assert len(whole) == 36 + 3 and lines(tmp_path / "two") == whole
    few = families.dataclasses.replace(PLAN, episodes=2, conditions=("right",))
    measure(few, policy, tmp_path / "few", workers=1)
    assert set(lines(tmp_path / "few")) < set(whole)
    text = (tmp_path / "one" / EPISODES_FILE).read_bytes()
    (tmp_path / "cut" / EPISODES_FILE).write_bytes(text[: len(text) // 2])
    again = measure(PLAN, policy, tmp_path / "cut", workers=1)
    assert lines(tmp_path / "cut") == whole
    first = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    second = json.loads((tmp_path / "cut" / "evaluation.json").read_text())
    first.pop("seconds"), second.pop("seconds")
    assert first == second and again["rows"] == first["rows"]


def test_a_folder_of_another_plan_is_refused(tmp_path):
    few = families.dataclasses.replace(PLAN, episodes=1, conditions=("right",))
    measure(few, policy, tmp_path, workers=1)
    other = families.dataclasses.replace(few, seed=1)
    with pytest.raises(InputError, match="seed: expected 1, found 0"):
        measure(other, policy, tmp_path, workers=1)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (f"{FILE}:up", "task 'up' is unknown; expected one of both, left, right"),
        ("nowhere.py:up", "expected a file, or a family of metaworld"),
        (f"{Path(__file__)}:up", "expected a Family called FAMILY, found none"),
        ("metaworld:mt7", "task 'mt7' is unknown"),
    ],
)
def test_unknown_families_and_tasks_are_named(env, said):
    assert families.names_a_family(env)
    with pytest.raises(InputError, match=said):
        families.find(env)


def test_a_record_of_another_robot_is_named():
    family, _ = families.find(f"{FILE}:both")
    other = families.find("metaworld_held:mt5").family.record
    with pytest.raises(InputError, match=r"cameras: .*point has \['front'\].*\['corner2'\]"):
        families.check_record(family, other.to_json())


@pytest.mark.skipif(bool(find_spec("metaworld")), reason="Meta-World is installed here")
def test_a_simulator_that_is_not_installed_is_named(tmp_path):
    plan = families.dataclasses.replace(PLAN, env="metaworld_held:mt1", conditions=("right",))
    with pytest.raises(InputError, match="the package metaworld is not installed in"):
        measure(plan, policy, tmp_path, workers=1)


def test_episodes_of_another_policy_are_not_mixed_in(tmp_path):
    few = families.dataclasses.replace(PLAN, episodes=1, conditions=("right",))
    measure(few, policy, tmp_path, workers=1)
    more = families.dataclasses.replace(few, episodes=2)
    other = lambda condition: contextlib.nullcontext(lambda seen, seeds: told(seen, seeds) * 0.9)  # noqa: E731
    with pytest.raises(InputError, match="condition right: expected the policy of the episodes"):
        measure(more, other, tmp_path, workers=1)
    assert rows(measure(more, policy, tmp_path, workers=1))


def test_a_policy_that_does_not_answer_keeps_what_is_over(tmp_path):
    calls = []

    @contextlib.contextmanager
    def dying(condition):
        def act(observations, seeds):
            calls.append(1)
            if len(calls) > 8:
                raise TimeoutError("no answer in time")
            return told(observations, seeds)

        yield act

    with pytest.raises(InputError, match="no answer in time; what is over is kept"):
        measure(PLAN, dying, tmp_path, workers=1)
    assert lines(tmp_path)
    assert measure(PLAN, policy, tmp_path, workers=1)["rows"]


def test_neighbours_act_as_the_nearest_demonstration_of_the_prompt(tmp_path):
    dark, light = (np.full((1, 16, 16, 3), value, np.uint8) for value in (0, 200))
    moments = Neighbours(
        ["front"],
        ["a", "a", "a", "b"],
        np.array([[0.0], [1.0], [1.0], [0.0]], np.float32),
        np.stack([dark, dark, light, dark]),
        np.arange(4, dtype=np.float32).reshape(4, 1, 1),
    )
    moments.save(tmp_path / "moments.npz")
    loaded = Neighbours.load(tmp_path / "moments.npz")
    image = np.full((40, 40, 3), 190, np.uint8)
    seen = {"images": {"front": image}, "state": np.array([0.9]), "prompt": "a"}
    assert small_images(seen, ["front"]).shape == (1, 16, 16, 3)
    for ours in (moments, loaded):
        assert ours.act(pixels=False)([seen], np.zeros(1)).item() == 1
        assert ours.act(pixels=True)([seen], np.zeros(1)).item() == 2
        assert ours.act(pixels=True)([{**seen, "prompt": "b"}], np.zeros(1)).item() == 3
    with pytest.raises(InputError, match="expected demonstrations of 'c'"):
        moments.act(pixels=False)([{**seen, "prompt": "c"}], np.zeros(1))


def test_a_simulator_needs_neither_jax_nor_tensorflow():
    """What a simulator's environment runs imports none of them, and no other package than stated."""
    code = (
        "import sys; before = set(sys.modules); import launch.evaluate, pi0_jax.sim.metaworld,"
        " pi0_jax.sim.metaworld.demonstrations;"
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    assert not loaded & {"jax", "jaxlib", "flax", "tensorflow", "tensorflow_datasets", "optax"}
    assert loaded - {"launch", "pi0_jax"} <= {*NEEDED, *OPTIONAL}
