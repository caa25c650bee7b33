"""The reach world: scene, environment, expert."""

import warnings

import gymnasium.utils.env_checker
import numpy as np
import pytest

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.errors import InputError
from pi0_jax.sim import expert
from pi0_jax.sim.arms import ARMS, HELD_OUT_ROBOT, ROBOTS
from pi0_jax.sim.reach import (
    EPISODE_TICKS,
    GOAL_HEIGHT,
    HOLD_TICKS,
    PHRASINGS,
    SUCCESS_RADIUS,
    ReachEnv,
)
from pi0_jax.sim.reach_rollouts import ReachWorld
from pi0_jax.sim.scene import BLOCK_SIDE, COLORS, ReachScene

ALL_ROBOTS = (*ROBOTS, HELD_OUT_ROBOT)


@pytest.fixture(params=ALL_ROBOTS)
def env(request):
    env = ReachEnv(request.param)
    yield env
    env.close()


@pytest.fixture
def arm3():
    env = ReachEnv("reach_arm3")
    yield env
    env.close()


# ---- arms and scene


@pytest.mark.parametrize("robot", ALL_ROBOTS)
def test_arms_are_the_embodiments(robot):
    embodiment = EMBODIMENTS[robot]
    env = ReachEnv(robot)
    assert (
        len(ARMS[robot].joints)
        == len(embodiment.state)
        == len(embodiment.actions)
        == env.action_space.shape[0]
    )
    assert set(embodiment.cameras.values()) == set(env.observation_space["images"])
    assert embodiment.control_hz == env.metadata["render_fps"]


def test_unknown_robot_is_named():
    with pytest.raises(InputError, match="'reach_arm7' is unknown.*reach_arm3, reach_arm4"):
        ReachEnv("reach_arm7")


def test_jacobian_is_the_derivative_of_the_fingertip(env):
    joints, small = env.scene.home + 0.1, 1e-6
    point, jacobian = env.scene.fingertip_at(joints)
    for i, column in enumerate(jacobian.T):
        moved, _ = env.scene.fingertip_at(joints + small * np.eye(len(joints))[i])
        np.testing.assert_allclose((moved - point) / small, column, atol=1e-5)


def test_every_block_is_where_it_projects_to_in_the_base_camera():
    blocks = np.array([[0.35, -0.2, 0.02], [0.30, 0.0, 0.02], [0.15, 0.25, 0.02]])
    upright = np.array([0.0, -1.9, 0.0])  # out of the way
    with ReachScene("reach_arm3", side=128) as scene:
        data = scene.new_data()
        scene.place(data, upright, blocks)
        image = scene.render(data, "base").astype(int)
        for channel, (column, row) in enumerate(scene.project(blocks)):
            others = np.delete(image, channel, axis=-1).max(axis=-1)
            rows, columns = np.nonzero(image[..., channel] > others + 60)
            assert abs(columns.mean() - column) < 2 and abs(rows.mean() - row) < 2, COLORS[channel]


def test_corners_of_the_workspace_are_in_the_base_view():
    with ReachScene("reach_arm3") as scene:
        ring = np.array(
            [
                (r * np.cos(a), r * np.sin(a), z)
                for r in (0.18, 0.42)
                for a in (-1, 0, 1)
                for z in (0, BLOCK_SIDE)
            ]
        )
        pixels = scene.project(ring)
        assert pixels.min() > 0 and pixels.max() < scene.side


def test_gravity_does_not_move_the_arm(env):
    env.begin(seed=0)
    start = env.joints
    for _ in range(20):
        env.advance(start)
    np.testing.assert_allclose(env.joints, start, atol=1e-4)  # rad


# ---- environment


@pytest.mark.parametrize("robot", ALL_ROBOTS)
def test_gymnasium_accepts_the_environment(robot):
    env = ReachEnv(robot)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # these actions are in rad
        warnings.filterwarnings("ignore", ".*symmetric and normalized space.*")
        # It can only make further environments, to check their rendering, from a registered one.
        gymnasium.utils.env_checker.check_env(env, skip_render_check=True)
    assert env.render().shape == (64, 64, 3)
    env.close()


def test_observation_is_what_the_contract_says(env):
    observation, info = env.reset(seed=0)
    assert set(observation) == {"images", "state", "prompt"}
    for image in observation["images"].values():
        assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and image.std() > 5
    assert observation["state"].dtype == np.float32
    assert observation["prompt"] in [
        phrasing.format(color=info["prompt_color"]) for phrasing in PHRASINGS
    ]


def test_reset_is_a_function_of_the_seed(env):
    first, _ = env.reset(seed=3)
    env.step(env.joints + 0.1)
    again, _ = env.reset(seed=3)
    other, _ = env.reset(seed=4)
    np.testing.assert_equal(again, first)
    assert not np.array_equal(other["images"]["base"], first["images"]["base"])


def test_layouts_keep_their_distances(arm3):
    seen = set()
    for seed in range(200):
        arm3.begin(seed=seed)
        seen.add(arm3.prompt)
        blocks = arm3.blocks
        distance, bearing = (
            np.hypot(blocks[:, 0], blocks[:, 1]),
            np.arctan2(blocks[:, 1], blocks[:, 0]),
        )
        assert distance.min() >= 0.20 and distance.max() <= 0.40 and np.abs(bearing).max() <= 1.0
        assert (
            min(np.linalg.norm(blocks[i] - blocks[j]) for i in range(3) for j in range(i)) >= 0.10
        )
        assert arm3.fingertip[2] >= 0.08
    assert len(seen) == len(PHRASINGS) * len(COLORS)


def test_prompt_options(arm3):
    drawn = arm3.begin(seed=0)["prompt_color"]
    phrasing, layout = arm3.prompt, arm3.blocks
    other = next(color for color in COLORS if color != drawn)

    assert arm3.begin(seed=0, options={"prompt_color": other})["prompt_color"] == other
    assert arm3.prompt == phrasing.replace(drawn, other)
    np.testing.assert_array_equal(arm3.blocks, layout)

    assert (
        arm3.begin(seed=0, options={"prompt": f"grab the {other} thing"})["prompt_color"] == other
    )
    assert arm3.prompt == f"grab the {other} thing"

    both = {"prompt_color": drawn, "prompt": f"reach the {other} block"}
    assert arm3.begin(seed=0, options=both)["prompt_color"] == drawn
    assert arm3.prompt == f"reach the {other} block"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_color": "pink"}, "prompt_color: expected one of red, green, blue, found 'pink'"),
        (
            {"prompt": "reach it"},
            "prompt: expected text that names one of red, green, blue, found 'reach it'",
        ),
        ({"prompt": "red or blue"}, "prompt: expected text that names one of"),
        ({"prompt": 5}, "reset option prompt: expected text, found 5"),
        ({"prompt": None}, "reset option prompt: expected text, found None"),
        (
            {"prompt_color": "red", "prompt": 5},
            "reset option prompt: expected text, found 5",
        ),
        ({"color": "red"}, "reset option 'color' is unknown; expected prompt_color or prompt"),
    ],
)
def test_bad_prompt_options_are_named(arm3, options, message):
    with pytest.raises(InputError, match=message):
        arm3.begin(seed=0, options=options)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(4), r"reach_arm3: action: expected float\[3\], found float64\[4\]"),
        (np.zeros((1, 3), np.float32), r"expected float\[3\], found float32\[1, 3\]"),
        (np.array(["a", "b", "c"]), r"expected float\[3\], found <U1\[3\]"),
        (
            np.array([0.0, np.nan, 0.0]),
            "action: joint_1: expected a finite target in rad, found nan",
        ),
        (
            np.array([0.0, 0.0, np.inf]),
            "action: joint_2: expected a finite target in rad, found inf",
        ),
    ],
)
def test_bad_actions_are_named(arm3, action, message):
    arm3.begin(seed=0)
    with pytest.raises(InputError, match=message):
        arm3.advance(action)


def test_targets_are_clipped_to_the_joints_limits(env):
    env.begin(seed=0)
    for _ in range(40):
        env.advance(np.full(env.action_space.shape, 100.0))
    np.testing.assert_allclose(env.joints, env.action_space.high, atol=0.02)  # rad


def test_success_takes_five_ticks_on_end(arm3):
    """Away from the goal the count starts again."""
    arm3.begin(seed=0)
    goal = expert.goal_joints(arm3.scene, arm3.goal(arm3.prompt_color))
    away = goal - np.array([0.0, 0.3, 0.0])

    def stay(target):
        """Ticks until the fingertip is inside the goal's sphere, or outside of it."""
        inside = target is goal
        while (arm3.advance(target)[3]["distance"] <= SUCCESS_RADIUS) != inside:
            pass

    stay(goal)  # the first tick inside
    for _ in range(HOLD_TICKS - 2):
        reward, terminated, _, info = arm3.advance(goal)
        assert not terminated and not info["success"] and reward == 0
    stay(away)
    stay(goal)
    for tick in range(HOLD_TICKS - 1):
        reward, terminated, truncated, info = arm3.advance(goal)
        assert terminated == info["success"] == (tick == HOLD_TICKS - 2) and reward == float(
            terminated
        )
    assert not truncated


def test_success_is_for_the_named_block_alone(arm3):
    color = arm3.begin(seed=0)["prompt_color"]
    other = next(name for name in COLORS if name != color)
    goal = expert.goal_joints(arm3.scene, arm3.goal(other))
    for _ in range(EPISODE_TICKS):
        _, terminated, truncated, info = arm3.advance(goal)
        assert not terminated
    assert truncated and info["distance"] > 0.06
    np.testing.assert_allclose(
        arm3.goal(color) - arm3.blocks[COLORS.index(color)], (0, 0, GOAL_HEIGHT)
    )


def test_a_shared_scene_gives_the_same_images_and_stays_open():
    with ReachScene("reach_arm4") as scene:
        shared = [ReachEnv("reach_arm4", scene=scene) for _ in range(3)]
        for seed, env in enumerate(shared):
            env.begin(seed=seed)
        together = [env.observe() for env in shared]
        shared[0].close()
        np.testing.assert_equal(shared[1].observe(), together[1])
    for seed, observation in enumerate(together):
        alone = ReachEnv("reach_arm4")
        np.testing.assert_equal(alone.reset(seed=seed)[0], observation)
        alone.close()


def test_a_shared_scene_must_fit():
    with (
        ReachScene("reach_arm3", side=32) as scene,
        pytest.raises(ValueError, match="scene is of reach_arm3, side 32"),
    ):
        ReachEnv("reach_arm3", scene=scene)


# ---- expert


def test_every_goal_of_the_workspace_can_be_reached(env):
    for seed in range(50):
        env.begin(seed=seed)
        for color in COLORS:
            goal = env.goal(color)
            fingertip, _ = env.scene.fingertip_at(expert.goal_joints(env.scene, goal))
            assert np.linalg.norm(fingertip - goal) < 1e-3  # m


def test_expert_succeeds_and_demonstrations_are_short(monkeypatch, env):
    monkeypatch.setattr(env, "observe", lambda: None)  # success needs no pictures
    attempts = [expert._attempt(env, np.random.default_rng(seed)) for seed in range(300)]
    assert np.mean([success for _, success in attempts]) >= 0.99
    assert 8 <= np.mean([len(steps) for steps, _ in attempts]) <= 20


def test_demonstration_records_the_clean_command(arm3):
    episode = expert.demonstrate(arm3, seed=5)
    goal = expert.goal_joints(arm3.scene, arm3.goal(episode.color))
    for step in episode.steps:
        clean = expert.command(step.observation["state"], goal)
        np.testing.assert_allclose(step.action, clean, atol=1e-6)
        assert np.abs(step.action - step.observation["state"]).max() <= 0.15 + 1e-6  # rad
    states = np.array([step.observation["state"] for step in episode.steps])
    executed_errors = states[1:] - np.array([step.action for step in episode.steps])[:-1]
    assert np.abs(executed_errors).max() > 0.01  # rad: what was executed was not clean


def test_demonstration_is_a_function_of_the_seed_and_stays_at_the_goal(arm3):
    first, again = expert.demonstrate(arm3, seed=1), expert.demonstrate(arm3, seed=1)
    np.testing.assert_equal(
        [(step.observation, step.action) for step in first.steps],
        [(step.observation, step.action) for step in again.steps],
    )
    success = next(i for i, step in enumerate(first.steps) if step.reward)
    assert len(first.steps) - success == 3
    assert first.color in first.steps[0].observation["prompt"]


def test_worlds_that_share_a_scene_are_kept_apart():
    with ReachScene("reach_arm3", side=16) as scene:
        first, second = ReachWorld(scene), ReachWorld(scene)
        first.begin(0)
        before = first.snapshot()
        second.begin(1)
        second.advance(np.zeros(3, np.float32))
        np.testing.assert_array_equal(first.snapshot().blocks, before.blocks)
