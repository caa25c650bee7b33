"""Rollouts in worker processes, with the expert in the policy's place, and the videos of them."""

import os
import signal
from functools import partial

import numpy as np
import pytest
from PIL import Image

from pi0_jax.errors import InputError
from pi0_jax.execution import OpenLoop, TemporalEnsemble
from pi0_jax.sim.rollouts import recordings, rollout, wilson_interval
from pi0_jax.sim.workers import Slots, Workers
from tests.own_process import python

HORIZON, COLORS, EPISODE_TICKS = 8, ("red", "green", "blue"), 60


class Oracle:
    """Does what the prompt says: a policy of known success.

    Its worlds (tests/sim_worlds.py) show it the expert's chunk for each colour. `calls` keeps the
    size and the seeds of every call.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, observations, seeds):
        self.calls.append((len(observations), seeds))
        return np.array([self.chunk(observation) for observation in observations], np.float32)

    def chunk(self, observation):
        named = next(color for color in COLORS if color in observation["prompt"])
        return observation["expert"][named]


def setting_of(robot):
    """Opens a setting in a worker: sim_worlds loads OpenGL when it is imported."""
    from tests.sim_worlds import open_setting

    return open_setting(robot)


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as workers:
        yield workers


@pytest.fixture(params=["reach_arm3", "reach_arm4", "reach_arm5"])
def robot(request):
    return request.param


@pytest.fixture
def oracle():
    return Oracle()


def run(workers, act, robot="reach_arm3", **options):
    return rollout(workers, partial(setting_of, robot), act, **options)


def outcomes(result):
    return [(r.episode, r.seed, r.prompt, r.group, r.success, r.ticks) for r in result.episodes]


# ---- rollouts


def test_expert_as_policy_succeeds(workers, oracle, robot):
    result = run(workers, oracle, robot, episodes=60, seed=0, parallel=20)
    assert [r.episode for r in result.episodes] == list(range(60))
    assert result.successes >= 0.95 * 60
    assert all(r.group in r.prompt and r.robot == robot for r in result.episodes)
    assert len({r.seed for r in result.episodes}) == 60
    assert all(5 <= r.ticks < EPISODE_TICKS for r in result.episodes if r.success)


def test_shuffled_prompts_leave_luck(workers, oracle):
    """Success is the episode's own block's; who does as he is told gets there 1 time in 3."""
    right = run(workers, oracle, episodes=90, seed=0, parallel=30)
    shuffled = run(workers, oracle, episodes=90, seed=0, parallel=30, prompts="shuffled")
    theirs = [(r.seed, r.group) for r in shuffled.episodes]
    assert theirs == [(r.seed, r.group) for r in right.episodes]
    assert sorted(r.prompt for r in shuffled.episodes) == sorted(r.prompt for r in right.episodes)
    assert [r.success for r in shuffled.episodes] == [
        r.group in r.prompt for r in shuffled.episodes
    ]
    assert 0.2 < shuffled.successes / 90 < 0.5
    assert all(r.ticks == EPISODE_TICKS for r in shuffled.episodes if not r.success)


@pytest.mark.parametrize("prompts", ["right", "shuffled"])
def test_episodes_do_not_depend_on_how_many_run_at_once_or_where(workers, oracle, prompts):
    options = {"episodes": 7, "seed": 1, "prompts": prompts, "record": 2}
    together = run(workers, oracle, parallel=7, **options)
    drawn = recordings(workers)
    with Workers(1) as alone:
        for pool, parallel in ((workers, 1), (workers, 3), (workers, 50), (alone, 3)):
            assert outcomes(run(pool, oracle, parallel=parallel, **options)) == outcomes(together)
            for mine, theirs in zip(recordings(pool), drawn, strict=True):
                np.testing.assert_array_equal(
                    [s.joints for s in mine.snapshots], [s.joints for s in theirs.snapshots]
                )
                np.testing.assert_array_equal(mine.chunks, theirs.chunks)


def test_every_call_has_the_same_number_of_rows_and_every_row_its_own_seed(workers, oracle):
    run(workers, oracle, episodes=8, seed=0, parallel=3)
    assert {rows for rows, _ in oracle.calls} == {3}
    first = oracle.calls[0][1]
    assert first.dtype == np.uint32 and len(set(first)) == 3
    together = {seed for _, seeds in oracle.calls for seed in seeds}
    oracle.calls.clear()
    run(workers, oracle, episodes=8, seed=0, parallel=8)
    assert {seed for _, seeds in oracle.calls for seed in seeds} == together


def test_recordings_hold_what_was_predicted_and_done(workers, oracle):
    result = run(workers, oracle, episodes=4, seed=0, parallel=2, execution=OpenLoop(3), record=2)
    found = recordings(workers)
    assert [recording.result.episode for recording in found] == [0, 1]
    for recording in found:
        ticks = recording.result.ticks
        assert recording.result == result.episodes[recording.result.episode]
        assert len(recording.snapshots) == ticks + 1
        assert recording.snapshots[0].joints.shape == (3,)
        assert recording.chunk_ticks == tuple(range(0, ticks, 3))
        assert recording.chunks.shape == (len(recording.chunk_ticks), HORIZON, 3)


def test_a_temporal_ensemble_asks_at_every_tick_and_each_episode_has_its_own(workers):
    """The recorded chunks begin with what was executed: the mean of all that was said of a tick."""
    said = np.random.default_rng(0).uniform(-0.3, 0.3, (100, HORIZON, 3)).astype(np.float32)

    def act(observations, seeds):
        """Says the same to an episode's tick in every run, by its seed."""
        return said[seeds % 100]

    run(workers, act, episodes=3, seed=0, parallel=2, record=3, execution=TemporalEnsemble())
    for recording in recordings(workers):
        assert recording.chunk_ticks == tuple(range(recording.result.ticks))
        # Past the first action a recorded chunk is the policy's own; the first one is the mean of
        # what this chunk and the older ones say of the tick. Replay them.
        keys = [recording.chunks[tick, 1:].tobytes() for tick in recording.chunk_ticks]
        own = {chunk[1:].tobytes(): chunk for chunk in said}
        strategy = TemporalEnsemble()
        for tick, key in enumerate(keys):
            action, strategy = strategy.step(own[key])
            np.testing.assert_array_equal(recording.chunks[tick, 0], action)


def test_the_time_of_a_rollout_is_told_by_stage(workers, oracle):
    seconds = run(workers, oracle, episodes=2, seed=0, parallel=2).seconds
    assert set(seconds) == {"physics", "rendering", "policy"} and min(seconds.values()) > 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: np.zeros((n, HORIZON, 4), np.float32), r"found float32\[2, 8, 4\]"),
        (lambda n: np.zeros((n, 4, 3), np.float32), r"found float32\[2, 4, 3\]"),
        (lambda n: np.zeros((n, 3), np.float32), r"found float32\[2, 3\]"),
        (lambda n: np.full((n, 8, 3), np.nan), "episode 0, tick 0, chunk step 0, joint_0: .* nan"),
    ],
)
def test_bad_answers_of_a_policy_are_named(workers, answer, message):
    with pytest.raises(InputError, match=message):
        run(workers, lambda seen, seeds: answer(len(seen)), episodes=2, seed=0, parallel=2)


def test_unknown_prompts_are_named(workers, oracle):
    with pytest.raises(InputError, match="prompts: expected right or shuffled, found 'wrong'"):
        run(workers, oracle, episodes=1, seed=0, prompts="wrong")


# ---- workers


def killing_setting():
    os.kill(os.getpid(), signal.SIGSEGV)


def loaded(slots):
    """Returns what a worker has imported."""
    import sys

    return [name for name in ("jax", "tensorflow", "mujoco") if name in sys.modules]


def test_a_driver_that_crashes_is_told_in_one_line():
    with Workers(1) as workers, pytest.raises(InputError, match=r"ended by SIGSEGV; .*MUJOCO_GL"):
        workers.open(killing_setting)


def test_workers_import_neither_jax_nor_tensorflow(workers, oracle):
    run(workers, oracle, episodes=2, seed=0)
    assert workers.ask(loaded, [()] * 2) == [["mujoco"]] * 2


def test_workers_do_not_import_what_a_script_imports():
    script = """
import jax
from pi0_jax.sim.workers import Workers

def loaded(slots):
    import sys
    return "jax" in sys.modules

with Workers(1) as workers:  # without a guard, as scripts are
    print(workers.ask(loaded, [()]))
"""
    assert python("-c", script).stdout == "[False]\n"


def test_a_worker_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr("pi0_jax.sim.workers._END_SECONDS", 0.1)
    with Workers(1) as stopped:
        (process,) = stopped._processes
        os.kill(process.pid, signal.SIGSTOP)
    assert process.exitcode == -signal.SIGKILL


def test_the_number_of_workers_is_checked():
    with pytest.raises(InputError, match="expected at least 1, found 0"):
        Workers(0)


# ---- statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(successes, trials, low, high):
    np.testing.assert_allclose(wilson_interval(successes, trials), (low, high), atol=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=5e-5)
    assert [wilson_interval(0, n)[0] for n in (3, 10)] == [0, 0]
    assert [wilson_interval(n, n)[1] for n in (3, 10)] == [1, 1]


# ---- video


def test_gif_shows_every_tick_and_the_predicted_path(workers, oracle, tmp_path):
    run(workers, oracle, episodes=1, seed=0, parallel=1, record=1)
    workers.ask(Slots.save_videos, [(tmp_path / "rollouts", "arm", 0.1)] * workers.count)
    path = tmp_path / "rollouts" / "arm-0.gif"
    with Image.open(path) as gif:
        ticks = recordings(workers)[0].result.ticks
        assert gif.n_frames == ticks + 1 and gif.size[0] == 96
        first = np.asarray(gif.convert("RGB")).astype(int)
    assert [file.name for file in path.parent.iterdir()] == ["arm-0.gif"]
    orange = (np.abs(first - (255, 120, 0)).max(axis=-1) < 10).sum()
    assert orange > 20  # pixels
