"""The laboratory's worlds where the present is not enough, or is seen and answered badly."""

import numpy as np
import pytest

from pi0_jax.lab import hidden, worlds
from pi0_jax.lab.experiments import robustness


def driven(world, act, seed=3):
    """Returns the states that an episode shows, [T + 1, S], and whether it succeeded."""
    world.begin(seed)
    states, ended, success = [world.observe()["state"]], False, False
    while not ended:
        success, ended = world.advance(act(world, len(states) - 1))
        states.append(world.observe()["state"])
    return np.array(states), success


def _expert(world, tick):
    return hidden.expert(world._position, world._goal, tick)[0]


@pytest.mark.parametrize("kind", hidden.KINDS)
def test_the_expert_is_at_the_goal_when_the_episode_ends(kind):
    """And who goes elsewhere is not."""
    for seed in range(10):
        world = hidden.HiddenWorld(kind, 1)
        states, success = driven(world, _expert, seed)
        assert success and len(states) == hidden.TICKS + 1 and world.snapshot() < 1e-9
        assert (np.diff(states[: hidden.WAIT + 1, 1]) == 0).all()
    assert not driven(world, lambda world, tick: [0.0, 0.9])[1]


def test_the_cue_is_gone_after_the_first_tick_and_a_velocity_is_never_shown():
    cue, motion, still = (driven(hidden.HiddenWorld(kind, 1), _expert)[0] for kind in hidden.KINDS)
    assert abs(cue[0, 2]) == 1 and (cue[1:, 2] == 0).all()
    assert np.sign(cue[-1, 1]) == cue[0, 2]
    assert np.ptp(np.diff(motion[:, 2])) < 1e-6 < abs(motion[1, 2] - motion[0, 2])
    assert motion[-1, 1] == motion[-1, 2] and np.ptp(still[:, 2]) == 0
    # Until the point turns, nothing in one frame but the first tells the side.
    _, goal = hidden.begin("cue", np.arange(200))
    position, _ = hidden.begin("cue", np.arange(200))
    assert abs(np.corrcoef(position[:, 1], goal[:, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("kind", hidden.KINDS)
def test_four_frames_are_the_last_four_states(kind, tmp_path, monkeypatch):
    one, four = (driven(hidden.HiddenWorld(kind, frames), _expert)[0] for frames in (1, 4))
    for tick in range(len(one)):
        before = [one[max(tick - ago, 0)] for ago in range(4)]
        np.testing.assert_array_equal(four[tick], np.concatenate(before))
    # So are those of demonstrations, which are the same ones.
    monkeypatch.setattr(hidden.data, "write", lambda *given: given[3:5])
    (states, actions), (stacked, same) = (
        hidden.write(kind, frames, tmp_path, 0)[0] for frames in (1, 4)
    )
    np.testing.assert_array_equal(actions, same)
    np.testing.assert_array_equal(stacked[:, 9, 9:], states[:, 6])
    assert stacked.shape == (*states.shape[:2], len(hidden.record(4).state))


def test_latency_holds_actions_back():
    """The point waits for so many ticks, and then does the same."""
    actions = np.random.default_rng(0).uniform((-0.9, -0.2), (-0.7, 0.0), (30, 2))

    def way(latency):
        return driven(robustness.WornWorld(0.0, latency), lambda world, tick: actions[tick % 30])[0]

    clean = way(0)
    for ticks in (1, 2, 4):
        late = way(ticks)
        assert (late[: ticks + 1] == late[0]).all()
        np.testing.assert_allclose(late[ticks:30], clean[: 30 - ticks], atol=1e-6)


def test_noise_is_seen_and_does_not_move_the_point():
    world = robustness.WornWorld(0.02, 0)
    world.begin(5)
    seen = np.array([world.observe()["state"] for _ in range(2000)])
    np.testing.assert_allclose(seen.mean(axis=0), world.snapshot()[0][:4], atol=0.002)
    np.testing.assert_allclose(seen.std(axis=0), 0.02, rtol=0.1)
    world.begin(5)
    np.testing.assert_array_equal(world.observe()["state"], seen[0])
    assert world.robot == worlds.RECORD.name
