"""The laboratory's arms: the expert reaches, and a mirrored arm looks the same and turns the other way."""

import gymnasium
import numpy as np
import pytest

from pi0_jax.lab import arms, runs
from pi0_jax.lab.arms import Arm
from pi0_jax.lab.experiments import EXPERIMENTS, robots
from pi0_jax.policy import Policy


@pytest.mark.parametrize("links", [2, 3, 4])
@pytest.mark.parametrize("turn", [1, -1])
def test_the_expert_reaches_and_the_other_arms_does_not(links, turn):
    """And one episode moves as the functions of many do."""
    arm, other = Arm("arm", links, turn), Arm("other", links, -turn)
    angles, goal = arm.begin(np.arange(100))
    far = np.linalg.norm(arms.places(angles)[:, -1] - goal, axis=1)
    env = gymnasium.make("pi0_jax.lab.arms:Reach-v0", links=links, turn=turn)
    seen, _ = env.reset(seed=7)
    wrong = angles
    for tick in range(arms.EPISODE_TICKS):
        np.testing.assert_allclose(seen["state"], arm.state(angles, goal)[7], atol=1e-5)
        action = arm.expert(angles, goal)
        angles = arm.move(angles, action)
        wrong = arm.move(wrong, other.expert(wrong, goal))
        seen, _, terminated, truncated, info = env.step(np.float32(action[7]))
        assert not terminated and truncated == (tick == arms.EPISODE_TICKS - 1)
    assert info["success"]
    assert np.linalg.norm(arms.places(angles)[:, -1] - goal, axis=1).max() < 1e-3
    missed = np.linalg.norm(arms.places(wrong)[:, -1] - goal, axis=1)
    assert (missed > np.minimum(far, 2 * arms.REACHED)).all()


def test_where_the_hand_is():
    found = arms.places(np.array([[0.0, 0.0], [np.pi / 2, -np.pi / 2]]))
    expected = [[[0, 0], [0.5, 0], [1, 0]], [[0, 0], [0, 0.5], [0.5, 0.5]]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_nothing_that_is_seen_tells_the_mirrored_arm_unless_its_motors_are():
    """The same observations come with opposite actions, tick by tick."""
    (arm, _), (mirrored, _) = robots.TOLD["nothing"].robots
    (states, actions), (others, opposite) = (one.demonstrations(20, 3) for one in (arm, mirrored))
    np.testing.assert_array_equal(others, states)
    np.testing.assert_array_equal(opposite, -actions)
    assert np.abs(actions[:, 0]).max(axis=1).min() > 0.005
    (arm, _), (mirrored, _) = robots.TOLD["state"].robots
    (states, _), (others, _) = (one.demonstrations(20, 3) for one in (arm, mirrored))
    np.testing.assert_array_equal(others[..., :4], states[..., :4])
    np.testing.assert_array_equal(others[..., 4:], -states[..., 4:])
    assert [dim.name for dim in arm.record.state[4:]] == ["motor_0", "motor_1"]


def test_fewer_demonstrations_are_the_first_of_more(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(
        arms.data, "write", lambda *given: written.update({len(given[3]): given[3]})
    )
    for count in robots.COUNTS:
        robots.NEW.write(tmp_path, 0, count)
    assert written.keys() == set(robots.COUNTS)
    np.testing.assert_array_equal(written[5], written[80][:5])


@pytest.mark.slow
def test_the_policy_of_a_training_with_tokens_knows_each_robot(tmp_path):
    """One training step's gradient reaches both tokens, and the checkpoint opens with them."""
    training = robots.TOLD_TRAININGS["token"]
    assert "embodiment_tokens" not in robots.TOLD_TRAININGS["nothing"].changes
    trained = runs.trained(training, tmp_path / "trained" / "token" / "seed_0", 0, quick=True)
    policy: Policy = trained.policy()
    begun = policy.untrained(0).params["embodiment_tokens"]["embedding"]
    moved = np.abs(policy.params["embodiment_tokens"]["embedding"] - begun)
    assert moved.shape[0] == 2 and (moved.max(axis=1) > 1e-3).all()
    seen = [{"images": {}, "state": np.zeros(4, np.float32), "prompt": "reach"}]
    one, other = (policy.act(seen, robot=name) for name in policy.config.embodiment_tokens)
    assert np.abs(one - other).max() > 1e-3


def test_only_statistics_are_taken_of_the_arm_that_is_held_out(tmp_path):
    training, rows = robots.JOINT, []
    for arm in (*robots.KNOWN, robots.NEW):
        rows.append(arm.write(tmp_path, 0, 2))
    run = runs.configured(training, tmp_path / "trained" / "joint" / "seed_0", rows, 0, quick=True)
    assert run.datasets == ("arm2", "arm3") and run.statistics_only == ("arm4",)
    assert EXPERIMENTS["embodiments"].trainings[0] is training
