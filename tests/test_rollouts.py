"""Rollouts, with the expert in the policy's place, and the videos drawn of them."""

import numpy as np
import pytest
from PIL import Image

from pi0_jax.errors import InputError
from pi0_jax.sim import expert, video
from pi0_jax.sim.reach import COLORS, EPISODE_TICKS
from pi0_jax.sim.reach_rollouts import ReachWorld, pictures
from pi0_jax.sim.rollouts import rollout, wilson_interval
from pi0_jax.sim.scene import ReachScene

HORIZON = 8


class Oracle:
    """Does what the prompt says, by looking into the environments: a policy of known success.

    It finds the environment of an observation by its joint angles. `calls` keeps the size and the seeds of every call.
    """

    def __init__(self, scene):
        self.scene, self.worlds, self.calls = scene, [], []

    @property
    def envs(self):
        return [world._env for world in self.worlds]

    def make_world(self):
        self.worlds.append(ReachWorld(self.scene))
        return self.worlds[-1]

    def __call__(self, observations, seeds):
        self.calls.append((len(observations), seeds))
        return np.array([self.chunk(observation) for observation in observations], np.float32)

    def chunk(self, observation):
        env = next(
            env
            for env in self.envs
            if np.array_equal(env.joints.astype(np.float32), observation["state"])
        )
        named = next(color for color in COLORS if color in observation["prompt"])
        goal, joints, chunk = expert.goal_joints(self.scene, env.goal(named)), env.joints, []
        for _ in range(HORIZON):
            joints = expert.command(joints, goal)
            chunk.append(joints)
        return chunk


@pytest.fixture(scope="module", params=["reach_arm3", "reach_arm4", "reach_arm5"])
def scene(request):
    with ReachScene(request.param, side=16) as scene:
        yield scene


@pytest.fixture
def oracle(scene):
    return Oracle(scene)


def outcomes(result):
    return [(r.episode, r.seed, r.prompt, r.group, r.success, r.ticks) for r in result.episodes]


# ---- rollouts


def test_expert_as_policy_succeeds(oracle):
    result = rollout(oracle.make_world, oracle, episodes=60, seed=0, parallel=20)
    assert [r.episode for r in result.episodes] == list(range(60))
    assert result.successes >= 0.95 * 60
    assert all(r.group in r.prompt and r.robot == oracle.scene.arm.name for r in result.episodes)
    assert len({r.seed for r in result.episodes}) == 60
    assert all(5 <= r.ticks < EPISODE_TICKS for r in result.episodes if r.success)


def test_shuffled_prompts_leave_luck(oracle):
    """Success is measured for the episode's own block; a policy that does as it is told gets there 1 time in 3."""
    right = rollout(oracle.make_world, oracle, episodes=90, seed=0, parallel=30)
    shuffled = rollout(
        oracle.make_world, oracle, episodes=90, seed=0, parallel=30, prompts="shuffled"
    )
    assert [(r.seed, r.group) for r in shuffled.episodes] == [
        (r.seed, r.group) for r in right.episodes
    ]
    assert sorted(r.prompt for r in shuffled.episodes) == sorted(r.prompt for r in right.episodes)
    assert [r.success for r in shuffled.episodes] == [
        r.group in r.prompt for r in shuffled.episodes
    ]
    assert 0.2 < shuffled.successes / 90 < 0.5
    assert all(r.ticks == EPISODE_TICKS for r in shuffled.episodes if not r.success)


@pytest.mark.parametrize("prompts", ["right", "shuffled"])
def test_episodes_do_not_depend_on_how_many_run_at_once(oracle, prompts):
    options = {"episodes": 7, "seed": 1, "prompts": prompts, "record": 2}
    together = rollout(oracle.make_world, oracle, parallel=7, **options)
    for parallel in (1, 3, 50):
        other = rollout(oracle.make_world, oracle, parallel=parallel, **options)
        assert outcomes(other) == outcomes(together)
        for mine, theirs in zip(other.recordings, together.recordings, strict=True):
            np.testing.assert_array_equal(
                [s.joints for s in mine.snapshots], [s.joints for s in theirs.snapshots]
            )
            np.testing.assert_array_equal(mine.chunks, theirs.chunks)


def test_every_call_has_the_same_number_of_rows_and_every_row_its_own_seed(oracle):
    rollout(oracle.make_world, oracle, episodes=8, seed=0, parallel=3)
    assert {rows for rows, _ in oracle.calls} == {3}
    first = oracle.calls[0][1]
    assert first.dtype == np.uint32 and len(set(first)) == 3
    together = {seed for _, seeds in oracle.calls for seed in seeds}
    oracle.calls.clear()
    rollout(oracle.make_world, oracle, episodes=8, seed=0, parallel=8)
    assert {seed for _, seeds in oracle.calls for seed in seeds} == together


def test_recordings_hold_what_was_predicted_and_done(oracle):
    result = rollout(
        oracle.make_world, oracle, episodes=4, seed=0, parallel=2, execute_steps=3, record=2
    )
    assert [recording.result.episode for recording in result.recordings] == [0, 1]
    for recording in result.recordings:
        ticks, joints = recording.result.ticks, oracle.envs[0].action_space.shape[0]
        assert recording.result == result.episodes[recording.result.episode]
        assert len(recording.snapshots) == ticks + 1 and recording.snapshots[0].joints.shape == (
            joints,
        )
        assert recording.chunk_ticks == tuple(range(0, ticks, 3))
        assert recording.chunks.shape == (len(recording.chunk_ticks), HORIZON, joints)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda n, a: np.zeros((n, HORIZON, a + 1), np.float32),
            r"expected float\[2, H >= 5, .\], found float32\[2, 8, .\]",
        ),
        (
            lambda n, a: np.zeros((n, 4, a), np.float32),
            r"expected float\[2, H >= 5, .\], found float32\[2, 4, .\]",
        ),
        (
            lambda n, a: np.zeros((n, a), np.float32),
            r"expected float\[2, H >= 5, .\], found float32\[2, .\]",
        ),
        (
            lambda n, a: np.full((n, 8, a), np.nan),
            "episode 0, tick 0, chunk step 0, joint_0: expected a finite number, found nan",
        ),
    ],
)
def test_bad_answers_of_a_policy_are_named(oracle, answer, message):
    def act(observations, seeds):
        return answer(len(observations), oracle.envs[0].action_space.shape[0])

    with pytest.raises(InputError, match=message):
        rollout(oracle.make_world, act, episodes=2, seed=0, parallel=2)


def test_unknown_prompts_are_named(oracle):
    with pytest.raises(InputError, match="prompts: expected right or shuffled, found 'wrong'"):
        rollout(oracle.make_world, oracle, episodes=1, seed=0, prompts="wrong")


# ---- statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (
            81,
            263,
            0.2553,
            0.3662,
        ),  # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I
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
    assert [wilson_interval(0, n)[0] for n in (3, 10)] == [0, 0] and [
        wilson_interval(n, n)[1] for n in (3, 10)
    ] == [1, 1]


# ---- video


def test_gif_shows_every_tick_and_the_predicted_path(oracle, tmp_path):
    recording = rollout(
        oracle.make_world, oracle, episodes=1, seed=0, parallel=1, record=1
    ).recordings[0]
    path = tmp_path / "rollouts" / "0.gif"
    video.save_gif(path, recording, pictures(recording, side=96), tick_seconds=0.1)
    with Image.open(path) as gif:
        assert gif.n_frames == recording.result.ticks + 1 and gif.size[0] == 96
    assert [file.name for file in path.parent.iterdir()] == ["0.gif"]
    first = next(video.frame_by_frame(recording, pictures(recording, side=96))).astype(int)
    orange = (np.abs(first - (255, 120, 0)).max(axis=-1) < 10).sum()
    assert orange > 20  # pixels
