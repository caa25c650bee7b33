"""The laboratory: its world, its statistics, and a harness that goes on, refuses and equals training."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy import stats

from pi0_jax.errors import InputError
from pi0_jax.lab import detour, gaussian, harness, pages, runs, worlds
from pi0_jax.lab.detour import ONE_SIDE, TWO_SIDES
from pi0_jax.lab.experiments import (
    EXPERIMENTS,
    execution,
    posttraining,
    weighting,
)
from pi0_jax.lab.plan import Expected, Means, Measuring, Pair, check
from pi0_jax.lab.statistics import paired, smallest_seen, student_quantile
from pi0_jax.policy_config import PolicyConfig
from pi0_jax.sim.worlds import EpisodeResult, Recording
from tests import training
from tests.training import ROOT

# ---- the world


def test_demonstrations_go_round_either_side_and_their_mean_goes_through():
    states, actions, side = worlds.demonstrations(300, 0, (1, -1))
    assert states.shape == (300, worlds.DEMONSTRATION_TICKS, 4)
    assert 0.4 < np.mean(side > 0) < 0.6
    way = np.float64(states[:, :, :2])
    clear = [worlds.clearance(way[:, t], way[:, t + 1]) for t in range(way.shape[1] - 1)]
    assert np.min(clear) > 0.05
    assert (np.linalg.norm(way[:, -1] - states[:, -1, 2:], axis=1) < worlds.REACHED).all()
    # What is seen first says nothing of the side: the mean action is straight ahead.
    assert abs(np.corrcoef(states[:, 0, 1], side)[0, 1]) < 0.15
    mean = np.float64(actions).mean(axis=0)
    assert worlds.clearance(mean[:-1], mean[1:]).min() < -0.1


def test_clearance_is_that_of_the_whole_way():
    starts = np.array([[-1.0, 0.0], [-1.0, 0.5], [0.3, 0.4], [0.1, 0.0]])
    ends = np.array([[1.0, 0.0], [1.0, 0.5], [0.6, 0.8], [0.1, 0.0]])
    expected = [-0.25, 0.25, 0.25, -0.15]
    np.testing.assert_allclose(worlds.clearance(starts, ends), expected, atol=1e-12)


def test_one_episode_is_the_world_of_many():
    """The Gymnasium world moves as the vectorised functions do, and succeeds by the expert."""
    seeds = np.arange(5)
    position, goal = worlds.begin(seeds)
    envs = [gymnasium.make("pi0_jax.lab.worlds:Detour-v0") for _ in seeds]
    seen = [env.reset(seed=int(seed))[0]["state"] for env, seed in zip(envs, seeds, strict=True)]
    np.testing.assert_array_equal(seen, np.float32(np.hstack([position, goal])))
    for _ in range(5):
        target = np.float32(worlds.expert(position, goal, np.ones(5)))
        position = worlds.move(position, np.float64(target))
        seen = [env.step(one)[0]["state"] for env, one in zip(envs, target, strict=True)]
        np.testing.assert_array_equal(seen, np.float32(np.hstack([position, goal])))


@pytest.mark.parametrize(("side", "succeeds"), [(1, True), (-1, True), (0, False)])
def test_success_needs_the_goal_and_no_touch(side, succeeds):
    env = gymnasium.make("pi0_jax.lab.worlds:Detour-v0")
    seen, _ = env.reset(seed=3)
    terminated = False
    while not terminated:
        position, goal = np.float64(seen["state"][None, :2]), np.float64(seen["state"][None, 2:])
        (target,) = worlds.expert(position, goal, np.array([side]))
        seen, reward, terminated, truncated, info = env.step(np.float32(target))
        assert not truncated
    assert info["success"] == succeeds and (info["clearance"] > 0) == succeeds
    assert reward == float(succeeds)


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("prompt", worlds.ROUTES)
def test_a_named_route_succeeds_by_its_expert_alone(prompt, pushed):
    """The expert gets there pushed or not, and is where its guide is; another route's fails."""
    for side in worlds.ROUTES.values():
        for seed in range(4):
            env = worlds.Detour(prompt, True, pushed)
            env.reset(seed=seed)
            goal, ended = np.float64(env._observation()["state"][None, 2:]), False
            while not ended:
                (target,) = worlds.expert(env.position, goal, np.array([side]))
                before = env.position
                *_, terminated, truncated, info = env.step(target)
                moved = np.linalg.norm(env.position - worlds.move(before, target[None]))
                assert (moved > 0.29) == (pushed and env._ticks == worlds.PUSH_TICK)
                ended = terminated or truncated
            named = side == worlds.ROUTES[prompt]
            assert info["success"] == named
            assert not named or np.abs(env.position - env.guide).max() < 1e-6


def test_the_gap_is_told_of_named_routes():
    still = np.array([-0.8, 0.0, 0.8, 0.1])
    snapshots = tuple((np.array([*still, -0.8 + 0.1 * tick, 0.0]),) for tick in range(5))
    for prompt in ("above", worlds.PROMPT):
        result = EpisodeResult(0, "planar_point", 1, prompt, prompt, False, 4)
        found = worlds.outcomes([Recording(result, snapshots, np.zeros((0, 8, 2)), ())])
        assert ("gap" in found) == ("miss" in found) == (prompt == "above")
        assert found["margin"] == [-worlds.RADIUS]
        assert "upper side" not in found  # it never got past
        if prompt == "above":
            assert found["gap"] == pytest.approx([0.2]) and found["miss"] == [0.5]


def test_manners_of_demonstrations():
    def driven(**manner):
        states, actions, _ = worlds.demonstrations(50, 0, (1.0,), worlds.Manner(jolt=0.0, **manner))
        way = np.float64(states[..., :2])
        moved = [worlds.move(way[:, t], np.float64(actions[:, t])) for t in range(way.shape[1] - 1)]
        off = np.linalg.norm(way[:, 1:] - np.stack(moved, 1), axis=2)
        return np.diff(way[:, :10, 0], axis=1) / worlds.SPEED, off

    pace, off = driven()
    assert pace.min() > 0.85 and off.max() < 1e-6
    pace, off = driven(dawdling=0.6, ticks=30)
    assert off.shape == (50, 29) and off.max() < 1e-6
    assert 0.35 < pace.min() < 0.5 and 0.9 < pace.max() < 1.001
    _, off = driven(mistakes=0.1)
    assert 0.05 < np.mean(off > 1e-6) < 0.15


def test_fewer_demonstrations_are_the_first_of_more(tmp_path):
    """Each route has starts of its own; and a rare route differs from seed to seed."""
    written = {}

    def write(data_dir, name, embodiment, states, actions, prompts, settings):
        written[name, len(states)] = states

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detour.data, "write", write)
        detour.write([detour.route("above", count) for count in (5, 30)], tmp_path, 3)
        detour.write([detour.route("below", 5)], tmp_path, 3)
    np.testing.assert_array_equal(written["above", 5], written["above", 30][:5])
    assert not np.isclose(written["above", 5][:, 0, 1], written["below", 5][:, 0, 1]).any()
    rare = {weighting.roles(seed)["rare"].prompt for seed in range(3)}
    assert len(rare) == 3


# ---- statistics


@pytest.mark.parametrize("freedom", [1, 3, 7, 15])
def test_quantiles_are_students(freedom):
    for probability in (0.8, 0.975):
        expected = stats.t.ppf(probability, freedom)
        assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def test_a_paired_difference_has_the_interval_of_a_paired_test():
    one, other = np.random.default_rng(0).normal(size=(2, 9))
    found = paired(one + 0.5, other)
    low, high = stats.ttest_rel(one + 0.5, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.seeds == 9 and found.deviation == pytest.approx(np.std(one - other, ddof=1))
    assert paired([1.0], [0.0]).low == -np.inf


def test_the_stated_effect_is_seen_four_times_in_five():
    rng, seeds = np.random.default_rng(0), 12
    effect = smallest_seen(1.0, seeds)
    drawn = rng.normal(effect, 1.0, (2000, seeds))
    seen = [paired(row, np.zeros(seeds)).clear for row in drawn]
    assert 0.77 < np.mean(seen) < 0.85


def test_the_gaussian_field_is_the_conditional_mean():
    """In one dimension it is written by hand, and in all it is the best linear guess of a sample."""
    x, t = np.array([[0.7]]), 0.3
    by_hand = (0.3 - 0.7 * 4.0) / (0.09 + 0.49 * 4.0) * (0.7 - 0.7 * 1.5) - 1.5
    found = gaussian.field(x, t, np.array([1.5]), np.array([[4.0]]))
    assert found[0, 0] == pytest.approx(by_hand)
    rng = np.random.default_rng(0)
    covariance = 0.8 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    actions = rng.multivariate_normal([0.2, 0.0, -1.0], covariance, 200_000)
    noise = rng.normal(size=actions.shape)
    x = t * noise + (1 - t) * actions
    with_one = np.hstack([x, np.ones((len(x), 1))])
    fitted = with_one @ np.linalg.lstsq(with_one, noise - actions, rcond=None)[0]
    exact = gaussian.field(x, t, np.array([0.2, 0.0, -1.0]), covariance)
    np.testing.assert_allclose(fitted, exact, atol=0.03)


# ---- the harness


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.experiment", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=training.environment(1)
    )


QUICK = ("execution", "--quick", "--seeds=1", "--processes=1")


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    """Runs E4 in miniature, and returns its output folder."""
    output = tmp_path_factory.mktemp("lab")
    process = run(*QUICK, f"--output={output}")
    assert process.returncode == 0, process.stderr
    assert "1 of 1 seeds to run" in process.stdout
    return output


@pytest.mark.slow
def test_an_experiment_leaves_results_a_page_and_an_overview(quick):
    record = json.loads((quick / "execution" / harness.RESULTS).read_text())
    (found,) = record["runs"]
    assert found["seed"] == 0 and record["made_with"]["quick"]
    assert record["configs"]["two_sides"]["variant"] == "femto"
    assert len(found["outcomes"]["two sides: ensemble"]["margin"]) == harness.QUICK_EPISODES
    assert found["curves"]["one_side"][-1][0] == runs.QUICK["steps"]
    page = (quick / "execution" / "index.html").read_text()
    assert "in miniature" in page and (quick / "execution" / "figure.png").exists()
    assert "execution/index.html" in (quick / "index.html").read_text()


@pytest.mark.slow
def test_a_stopped_experiment_goes_on_and_another_config_is_refused(quick):
    file = quick / "execution" / "seed_0.json"
    before = json.loads(file.read_text())
    assert "seeds to run" not in run(*QUICK, f"--output={quick}").stdout
    # As after a kill between training and measuring: what is trained stays, and gives the same.
    file.unlink()
    again = run(*QUICK, f"--output={quick}")
    assert again.returncode == 0, again.stderr
    after = json.loads(file.read_text())
    assert after["outcomes"] == before["outcomes"] and after["curves"] == before["curves"]
    # Not in miniature it is another experiment.
    full = run("execution", "--seeds=1", f"--output={quick}")
    assert full.returncode == 2
    assert "seed_0.json: quick: expected False, found True" in full.stderr.splitlines()[-1]
    file.unlink()
    workdir = run("execution", "--seeds=1", "--processes=1", f"--output={quick}")
    file.write_text(json.dumps(before))
    assert workdir.returncode == 2
    assert "steps: 1500 now, 40 in the checkpoint" in workdir.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_equals_launch_train_and_launch_evaluate(quick, tmp_path):
    folder, env = quick / "trained" / "two_sides" / "seed_0", training.environment(1)
    env |= {**harness.one_thread(), "XLA_FLAGS": f"{env['XLA_FLAGS']} {harness.ONE_THREAD_FLAG}"}

    def launch(script: str, *flags: str) -> None:
        command = [sys.executable, "-m", f"launch.{script}", *flags]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
        assert process.returncode == 0, process.stderr

    launch("train", f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    steps = int(runs.QUICK["steps"])
    assert training.losses(tmp_path / "run") == training.losses(folder / "train")
    for item in ("params", "ema"):
        ours, theirs = (
            training.arrays(at, steps, item) for at in (folder / "train", tmp_path / "run")
        )
        assert ours.keys() == theirs.keys()
        assert [path for path in ours if not np.array_equal(ours[path], theirs[path])] == []
    record = json.loads((quick / "execution" / harness.RESULTS).read_text())
    count = harness.QUICK_EPISODES
    succeeded = []
    for arm, flags in (
        ("open loop of 2", ["--execute_steps=2"]),
        ("ensemble", ["--temporal_ensemble=0.01"]),
    ):
        launch(
            "evaluate", f"--checkpoint={tmp_path / 'run'}", "--env=pi0_jax.lab.worlds:Detour-v0",
            f"--prompt={worlds.PROMPT}", f"--episodes={count}", f"--parallel={count}", "--seed=0",
            "--record=0", "--workers=1", f"--output={tmp_path / 'out'}", *flags,
        )  # fmt: skip
        (row,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"]
        outcomes = record["runs"][0]["outcomes"][f"two sides: {arm}"]
        assert (row["successes"], row["episodes"]) == (sum(outcomes["success"]), count)
        succeeded.append(row["successes"])
    assert 0 < sum(succeeded) < 2 * count  # or the comparison would say nothing


@pytest.mark.slow
def test_a_training_that_a_signal_stops_is_not_measured_and_goes_on(quick, tmp_path):
    """Stopped and gone on, the seed's file is that of the run that was left alone."""
    run_it = [sys.executable, "-m", "launch.experiment", *QUICK, f"--output={tmp_path}"]
    command = [sys.executable, "-c", training.HEARING, *run_it]
    env = training.environment(1)
    metrics = tmp_path / "trained" / "two_sides" / "seed_0" / "train" / "metrics.jsonl"
    with subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True) as process:
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    seed = tmp_path / "execution" / "seed_0.json"
    assert not seed.exists()
    again = run(*QUICK, f"--output={tmp_path}")
    assert again.returncode == 0, again.stderr
    alone = json.loads((quick / "execution" / "seed_0.json").read_text())
    assert json.loads(seed.read_text())["outcomes"] == alone["outcomes"]


@pytest.mark.slow
def test_a_training_of_other_versions_is_refused(quick):
    file = quick / "trained" / "two_sides" / "seed_0" / "versions.json"
    before, seed = file.read_text(), quick / "execution" / "seed_0.json"
    measured = seed.read_text()
    file.write_text(json.dumps({**json.loads(before), "jax": "0.1"}))
    seed.unlink()
    process = run(*QUICK, f"--output={quick}")
    file.write_text(before)
    seed.write_text(measured)
    assert process.returncode == 2
    assert "versions.json: expected " in process.stderr.splitlines()[-1]
    assert "'jax': '0.1'" in process.stderr.splitlines()[-1]


def test_an_unknown_experiment_is_one_line():
    process = run("generatoin")
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == (
        "error: experiment 'generatoin' is unknown; expected one of " + ", ".join(EXPERIMENTS)
    )


def some_runs(experiment, seeds):
    rng = np.random.default_rng(0)
    arms = {arm for pair in experiment.pairs for arm in (pair.arm, pair.minus)}
    arms |= {arm for one in experiment.expected for arm in (one.arm, one.minus) if arm}
    return [
        {
            "seed": seed,
            "cpu_seconds": 1.0,
            "date": "2026-01-01",
            "command": "c",
            "outcomes": {
                arm: {name: rng.uniform(0, 1, 4).tolist() for name in experiment.quantities}
                for arm in sorted(arms)
            },
        }
        for seed in range(seeds)
    ]


def written(folder: Path, experiment, found, pilot=()) -> Path:
    (folder / experiment.name).mkdir()
    path = folder / experiment.name / harness.RESULTS
    made_with = {"quick": False, "episodes": 4, "versions": {"jax": "0"}}
    made_with["revision"] = experiment.revision
    about = {"experiment": experiment.name, "machine": "m"}
    path.write_text(json.dumps({**about, "made_with": made_with, "runs": found, "pilot": pilot}))
    return path


def test_a_diverged_training_is_told_and_the_other_arms_of_its_seed_count(tmp_path):
    experiment = EXPERIMENTS["generation"]
    found = some_runs(experiment, 5)
    found[4]["diverged"] = {"gaussian": "loss nan"}
    for arm in [arm for arm in found[4]["outcomes"] if arm.startswith("Gaussian")]:
        del found[4]["outcomes"][arm]
    page = pages.write_page(written(tmp_path, experiment, found)).read_text()
    assert "seed 4: gaussian diverged: loss nan" in page and "There was no pilot" in page
    assert "5 seeds, 1 diverged" in pages.write_overview(tmp_path).read_text()
    means = Means(experiment, found)
    assert paired(means.of("flow", "margin"), means.of("one step", "margin")).seeds == 5
    one = "Gaussian, flow"
    assert paired(means.of(one, "variance"), means.of(f"{one}, exact field", "variance")).seeds == 4


def test_a_policy_that_diverged_or_was_not_trained_is_not_opened():
    at = Measuring({"two_sides": None}, None, 0, 1)
    with pytest.raises(runs.DivergedError, match="two_sides"):
        at.policy(TWO_SIDES)
    with pytest.raises(KeyError, match="one_side"):
        at.policy(ONE_SIDE)


def test_a_difference_that_is_not_shown_is_told_with_what_would_have_been_seen(tmp_path):
    experiment = EXPERIMENTS["generation"]
    path = written(tmp_path, experiment, some_runs(experiment, 4), some_runs(experiment, 3))
    page = pages.write_page(path).read_text()
    assert "no difference is shown" in page and "would probably have been seen" in page
    assert "3 pilot seeds" in page


def test_an_unknown_arm_is_named():
    experiment = EXPERIMENTS["generation"]._replace(pairs=(Pair("flow", "one stpe"),))
    with pytest.raises(InputError, match="arm 'one stpe' is unknown; expected one of .*one step"):
        Means(experiment, some_runs(EXPERIMENTS["generation"], 1))


def test_only_a_loss_that_is_not_finite_is_a_divergence(tmp_path, monkeypatch):
    """An older report in the folder does not turn another mistake into a divergence."""
    training_ = EXPERIMENTS["generation"].trainings[0]
    reports = tmp_path / "train" / "nonfinite"

    def stops(run, workdir, *, reported):
        if reported:
            reports.mkdir(parents=True, exist_ok=True)
            (reports / "step_3.jsonl").write_text("{}")
        raise InputError("batch 3: loss nan")

    monkeypatch.setattr(runs.train, "run", partial(stops, reported=False))
    with pytest.raises(InputError, match="batch 3"):
        runs.trained(training_, tmp_path, 0, quick=True)
    monkeypatch.setattr(runs.train, "run", partial(stops, reported=True))
    with pytest.raises(runs.DivergedError, match="batch 3"):
        runs.trained(training_, tmp_path, 0, quick=True)
    monkeypatch.setattr(runs.train, "run", partial(stops, reported=False))
    with pytest.raises(InputError, match="batch 3"):
        runs.trained(training_, tmp_path, 0, quick=True)


def test_an_unknown_quantity_or_training_is_named_before_a_run():
    experiment = EXPERIMENTS["generation"]._replace(told=("sucess",))
    with pytest.raises(InputError, match="quantity 'sucess' is unknown; expected one of .*success"):
        check(experiment)
    recovery = EXPERIMENTS["recovery"]
    later = recovery._replace(trainings=recovery.trainings[::-1])
    with pytest.raises(InputError, match="earlier training 'recovery_first' is unknown"):
        check(later)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_every_experiment_is_whole(experiment, tmp_path):
    """Its names are known, its configs are valid, and its page can be written."""
    check(experiment)
    names = [one.name for one in experiment.trainings]
    assert len(set(names)) == len(names)
    row = detour.data.write(
        tmp_path, "one", worlds.RECORD, *np.zeros((2, 1, 9, 4), np.float32), "above", {}
    )
    for one in experiment.trainings:
        folder = tmp_path / "trained" / one.name / "seed_7"
        run_ = runs.configured(one, folder, [row], 7, quick=False)
        first = one.changes.get("initial_weights")
        expected = str(tmp_path / "trained" / first / "seed_7" / "train") if first else ""
        assert run_.initial_weights == expected
        assert runs.deciding(run_, one)["initial_weights"] == (first or "")
    arms = experiment._replace(draw=None, measure=())  # figures want arms that no pair names
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(EXPERIMENTS, experiment.name, arms)
        pages.write_page(written(tmp_path, arms, some_runs(arms, 3)))


def test_only_what_begins_with_a_diverged_training_is_lost_with_it(tmp_path, monkeypatch):
    recovery = EXPERIMENTS["recovery"]

    def trained(training_, folder, seed, *, quick):
        if training_.name == "recovery_first":
            raise runs.DivergedError("loss nan")
        return runs.Trained(folder, None)

    monkeypatch.setattr(harness.runs, "trained", trained)
    found, diverged = harness._train(recovery, 0, harness.Options(tmp_path))
    assert diverged == {
        "recovery_first": "loss nan",
        "recovery_both": "it begins with recovery_first",
        "recovery_gently": "it begins with recovery_first",
    }
    assert [name for name, one in found.items() if one is None] == list(diverged)


@pytest.mark.parametrize(
    ("success", "expected"),
    [((0.9, 1, 1, 1), 2), ((0, 0, 0.1, 0.7), 16), ((0, 0.2, 0.6, 1), (4 * 8) ** 0.5)],
)
def test_the_demonstrations_at_80_percent(success, expected):
    assert 2 ** posttraining.log_needed(success) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "verdict"), [(0.4, "as expected"), (0.7, "not so"), (0.52, "undecided")]
)
def test_a_verdict_needs_the_whole_interval(low, verdict):
    experiment = EXPERIMENTS["generation"]
    found = some_runs(experiment, 6)
    for run_, value in zip(found, (0.5, 0.52, 0.54, 0.5, 0.52, 0.54), strict=True):
        run_["outcomes"]["flow"]["success"] = [value]
    means = Means(experiment, found)
    _, said = pages._found(Expected("", "success", "flow", low=low), means)
    assert said.startswith(verdict)


def test_the_pilots_page_tells_what_a_full_run_would_show(tmp_path):
    experiment = EXPERIMENTS["generation"]
    page = pages.write_page(written(tmp_path, experiment, [], some_runs(experiment, 4)))
    assert f"With {experiment.seeds} seeds the last column" in page.read_text()


def test_a_perfect_sampler_has_no_bias_at_any_place():
    """Its chunks spread more and more, which alone would look like a tail that is less accurate."""

    class Perfect:
        config = PolicyConfig(horizon=8)

        def act(self, observations, seeds):
            states = np.stack([one["state"] for one in observations])
            return execution._continued(states, 8, np.random.default_rng(9))

    found = [execution._places(Perfect(), seed) for seed in range(8)]
    for name in ("policy", "perfect sampler"):
        for place in range(1, 9):
            arms = [one[f"{name}, place {place}"] for one in found]
            bias = np.array([arm["squared bias"][0] for arm in arms])
            assert abs(bias.mean()) < 1e-5, (name, place, bias)
        assert found[0][f"{name}, place 1"]["spread"][0] < 1e-9
        assert found[0][f"{name}, place 8"]["spread"][0] > 0.03
