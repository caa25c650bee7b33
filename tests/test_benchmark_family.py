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
from pi0_jax.sim import benchmark
from pi0_jax.sim.benchmark import EPISODES_FILE, Candidate, Plan, families, measure, table
from pi0_jax.sim.benchmark.controls import Neighbours, open_neighbours, small_images

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

    yield Candidate(black(told) if condition == "black" else told)


def lines(folder):
    """Returns the journal's lines without those that say how long it took."""
    found = (folder / EPISODES_FILE).read_text().splitlines()[1:]
    return sorted(line for line in found if line.startswith("["))


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
        ("{needs}:up", "No module named 'not_installed_here'"),
        ("{wrong}:up", r"wrong\.py: line 2: '\(' was never closed"),
        (f"{FILE}:left,up", "task 'up' is unknown"),
    ],
)
def test_unknown_families_and_tasks_are_named(env, said, tmp_path):
    (tmp_path / "needs.py").write_text("import not_installed_here\n")
    (tmp_path / "wrong.py").write_text("import numpy\nFAMILY = Family(\n")
    env = env.format(needs=tmp_path / "needs.py", wrong=tmp_path / "wrong.py")
    assert families.names_a_family(env)
    with pytest.raises(InputError, match=said):
        families.find(env)


def test_several_tasks_and_groups_are_each_taken_once():
    assert families.find(f"{FILE}:right,both").tasks == ("right", "left")


def test_a_task_may_have_its_own_limit_and_published_rates_stand_beside(tmp_path):
    """A row of a table is named by the group or the task; what was chosen is "all"."""
    mine = (
        'packages=("numpy",),',
        'packages=("numpy",), limits={"left": 1},\n'
        '    published={"A (a paper)": {"both": 50.0, "left": 12.5}, "B": {"up": 1.0}},',
    )
    plan = families.dataclasses.replace(own_family(tmp_path, mine), conditions=("right", "black"))
    found = measure(plan, policy, tmp_path / "out", workers=1)
    assert found["most_actions"] == {"left": 1, "right": 15}
    journal = map(json.loads, lines(tmp_path / "out"))
    ticks = {line[1]: line[4] for line in journal if line[0] == "black" and len(line) == 5}
    assert ticks["left"] <= plan.execute_steps < ticks["right"]
    assert found["published"] == {"A (a paper)": {"all": 50.0}}
    assert "50.0  A (a paper)" in table(found["rows"], found["published"])


def test_no_condition_is_named(tmp_path):
    with pytest.raises(InputError, match="conditions: expected some of right, .* found none"):
        measure(families.dataclasses.replace(PLAN, conditions=()), policy, tmp_path)


def test_seconds_are_those_of_all_starts(tmp_path):
    few = families.dataclasses.replace(PLAN, episodes=1, conditions=("right",))
    measure(few, policy, tmp_path, workers=1)
    seconds = json.loads((tmp_path / "evaluation.json").read_text())["seconds"]
    measure(few, policy, tmp_path, workers=1)
    again = json.loads((tmp_path / "evaluation.json").read_text())["seconds"]
    assert again == seconds and seconds["policy"] > 0
    # As after a kill: the journal alone is there.
    (tmp_path / "evaluation.json").unlink()
    measure(families.dataclasses.replace(few, episodes=2), policy, tmp_path, workers=1)
    more = json.loads((tmp_path / "evaluation.json").read_text())["seconds"]
    assert all(more[stage] > seconds[stage] for stage in ("policy", "simulation", "videos"))


def test_a_worker_that_is_killed_is_not_told_as_opengls_fault(tmp_path):
    plan = own_family(
        tmp_path,
        ("self._x +=", "__import__('os').kill(__import__('os').getpid(), 9); self._x +="),
    )
    with pytest.raises(InputError, match=r"worker process 0 was killed \(SIGKILL\)"):
        measure(plan, policy, tmp_path / "out", workers=1)


def own_family(folder, *changes):
    """Writes point_family.py with changes, and returns the plan of one episode of it."""
    text = Path(FILE).read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "mine.py").write_text(text)
    env = f"{folder / 'mine.py'}:both"
    return families.dataclasses.replace(PLAN, env=env, episodes=1, conditions=("right",))


def test_a_family_that_was_changed_is_another_evaluation(tmp_path):
    measure(own_family(tmp_path), policy, tmp_path / "out", workers=1)
    changes = ("most_actions=15", "most_actions=14"), ("0.06", "0.05"), ("to the left", "left")
    with pytest.raises(InputError) as refused:
        measure(own_family(tmp_path, *changes), policy, tmp_path / "out", workers=1)
    for name in ("family_file", "most_actions", "tasks"):
        assert f"{name}: expected " in str(refused.value)
    assert "most_actions: expected 14, found 15" in str(refused.value)


def test_every_simulator_that_was_opened_is_closed(tmp_path):
    log = tmp_path / "log"
    changes = (
        (
            "        self._side =",
            f"        open({str(log)!r}, 'a').write('o')\n        self._side =",
        ),
        ("        pass", f"        open({str(log)!r}, 'a').write('c')"),
    )
    measure(own_family(tmp_path, *changes), policy, tmp_path / "out", workers=1)
    assert log.read_text().count("o") == log.read_text().count("c") >= 2


def test_a_simulator_that_fails_ends_the_command_in_one_line(tmp_path):
    plan = own_family(tmp_path, ("self._x +=", "raise ValueError('broken'); self._x +="))
    with pytest.raises(InputError, match="worker process 0 has ended with status 1"):
        measure(plan, policy, tmp_path / "out", workers=1)


def test_a_policy_that_never_answers_is_one_line(tmp_path):
    def silent(observations, seeds):
        raise TimeoutError("no answer in time")

    with pytest.raises(InputError, match="the policy does not answer: no answer in time"):
        measure(
            PLAN, lambda condition: contextlib.nullcontext(Candidate(silent)), tmp_path, workers=1
        )


def evaluate(*flags, code="from launch import evaluate; evaluate.main()"):
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("flags", "unread"),
    [
        (
            ["--server=a:1", f"--env={FILE}:both", "--num_steps=2", "--prompt=x", "--robots=a"],
            {"num_steps", "prompt", "robots"},
        ),
        (
            ["--server=a:1", f"--env={FILE}:both", "--compilation_cache=", "--policy_python=a"],
            {"compilation_cache", "policy_python"},
        ),
        (["--checkpoint=/a", f"--env={FILE}:both", "--api_key_file=a"], {"api_key_file"}),
        (
            ["--checkpoint=/a", "--policy_robot=a", "--neighbours=a", "--policy_python=python"],
            {"policy_robot", "neighbours", "policy_python"},
        ),
        (
            ["--checkpoint=/a", "--env_args={}", "--success=a", "--prompt=x", "--robots=a"],
            {"env_args", "success", "prompt"},
        ),
    ],
)
def test_flags_that_would_not_be_read_are_refused(flags, unread, tmp_path):
    said = evaluate(f"--output={tmp_path}", *flags)
    assert {line.removeprefix("error: --").split(":")[0] for line in said} == unread


def test_a_misspelt_family_where_there_is_no_jax_is_named(tmp_path):
    code = "import sys; sys.modules['jax'] = None; from launch import evaluate; evaluate.main()"
    (said,) = evaluate(f"--output={tmp_path}", "--server=a:1", "--env=metawrld:mt5", code=code)
    assert "--env=metawrld:mt5: expected a family" in said


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

    def answering(act, **marks):
        return lambda condition: contextlib.nullcontext(Candidate(act, marks))

    with pytest.raises(InputError, match="condition right: expected the policy of the episodes"):
        measure(more, answering(lambda *seen: told(*seen) * 0.9), tmp_path, workers=1)
    # The same answer to the first question is not enough.
    with pytest.raises(InputError, match="versions: expected None, found {'jax': '0'}"):
        measure(more, answering(told, versions={"jax": "0"}), tmp_path, workers=1)
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

        yield Candidate(act)

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
    assert loaded.digest() == moments.digest() != moments_of(moments.states).digest()
    for ours in (moments, loaded):
        assert ours.act(pixels=False)([seen], np.zeros(1)).item() == 1
        assert ours.act(pixels=True)([seen], np.zeros(1)).item() == 2
        assert ours.act(pixels=True)([{**seen, "prompt": "b"}], np.zeros(1)).item() == 3
    with pytest.raises(InputError, match="expected demonstrations of 'c'"):
        moments.act(pixels=False)([{**seen, "prompt": "c"}], np.zeros(1))


def moments_of(states, cameras=("front",)):
    count = len(states)
    pixels = np.zeros((count, 1, 16, 16, 3), np.uint8)
    chunks = np.arange(count, dtype=np.float32).reshape(count, 1, 1)
    return Neighbours(cameras, ["go to the left"] * count, states, pixels, chunks)


def test_what_is_constant_in_the_demonstrations_does_not_decide_which_is_nearest():
    moments = moments_of(np.array([[0.0, 0.7], [1.0, 0.7], [1.1, 0.7]], np.float32))
    image = np.full((40, 40, 3), 190, np.uint8)
    seen = {"images": {"front": image}, "state": [1.04, 0.9], "prompt": "go to the left"}
    for pixels in (False, True):
        assert moments.act(pixels=pixels)([seen], np.zeros(1)).item() == 1


def test_neighbours_that_do_not_fit_are_named_before_any_episode(tmp_path):
    path, record = tmp_path / "moments.npz", families.find(f"{FILE}:both").family.record
    states = np.arange(3, dtype=np.float32)[:, None]
    moments_of(states).save(path)
    assert len(open_neighbours(str(path), record, ["go to the left"]).states) == 3
    with pytest.raises(InputError, match="expected demonstrations of 'go to the right'"):
        open_neighbours(str(path), record, ["go to the left", "go to the right"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"moments\.npz: expected a file of launch\.neighbours"):
        open_neighbours(str(path), record, ["go to the left"])
    moments_of(states, ["wrist"]).save(path)
    with pytest.raises(InputError, match="wrist"):
        open_neighbours(str(path), record, ["go to the left"])


def test_a_simulator_needs_neither_jax_nor_tensorflow():
    """What a simulator's environment runs imports none of them, and no other package than stated."""
    code = (
        "import sys; before = set(sys.modules); import launch.evaluate, pi0_jax.sim.libero, pi0_jax.sim.metaworld,"
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


def test_a_shuffled_prompt_is_another_sentence_and_not_another_task_of_the_same(tmp_path):
    file = tmp_path / "twice.py"
    file.write_text(
        "import dataclasses, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('point', {FILE!r})\n"
        "point = importlib.util.module_from_spec(spec); spec.loader.exec_module(point)\n"
        "tasks = dict(point.FAMILY.tasks, again=point.FAMILY.tasks['left'])\n"
        "FAMILY = dataclasses.replace(point.FAMILY, tasks=tasks)\n"
    )
    plan = families.dataclasses.replace(PLAN, env=f"{file}:left,right,again")
    chosen = families.find(plan.env)
    for task in ("left", "again"):
        prompts = {
            benchmark._episode(plan, chosen, benchmark.Key("shuffled", task, e), 0).prompt
            for e in range(20)
        }
        assert prompts == {chosen.family.tasks["right"]}
    with pytest.raises(InputError, match="at least two instructions, found one"):
        measure(families.dataclasses.replace(plan, env=f"{file}:left,again"), policy, tmp_path)


def test_the_row_all_is_of_all_chosen_tasks_whatever_the_family_calls_all():
    family, tasks = families.find(PLAN.env)
    family = families.dataclasses.replace(family, groups={"all": tasks[:2], "both": tasks})
    assert "all" not in families.groups_inside(
        families.Chosen(family, (*tasks, "one more", "and another"))
    )
