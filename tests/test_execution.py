"""Chunks are executed: the right action comes at every tick."""

import numpy as np
import pytest

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.errors import InputError
from pi0_jax.execution import OpenLoop, TemporalEnsemble


def run(strategy, chunks):
    """Runs as many ticks as there are chunks; chunk t begins at tick t.

    Returns:
        The actions, and the ticks at which a chunk was asked for.
    """
    actions, asked = [], []
    for tick, chunk in enumerate(chunks):
        wanted = strategy.wants_chunk()
        asked += [tick] * wanted
        action, strategy = strategy.step(chunk if wanted else None)
        actions.append(action)
    return np.array(actions), asked


def numbered(ticks, horizon):
    """Returns float32[ticks, horizon, 1]: action j of the chunk of tick t is 100 t + j."""
    return (100 * np.arange(ticks)[:, None] + np.arange(horizon)).astype(np.float32)[:, :, None]


def test_open_loop_executes_the_first_steps_of_each_chunk():
    actions, asked = run(OpenLoop(3), numbered(ticks=7, horizon=5))
    assert actions[:, 0].tolist() == [0, 1, 2, 300, 301, 302, 600]
    assert asked == [0, 3, 6]


def test_open_loop_refuses_what_it_cannot_execute():
    with pytest.raises(InputError, match="chunks of at least 6 actions, found 5"):
        OpenLoop(6).step(np.zeros((5, 2)))
    with pytest.raises(InputError, match="open loop: expected at least 1 step of a chunk, found 0"):
        OpenLoop(0)
    with pytest.raises(InputError, match="open loop: expected a chunk, found none"):
        OpenLoop(2).step(None)


def test_temporal_ensemble_refuses_a_tick_without_actions():
    _, used = TemporalEnsemble().step(np.zeros((3, 2)))
    with pytest.raises(InputError, match="expected a chunk at every tick, found none"):
        used.step(None)
    with pytest.raises(InputError, match="expected a chunk at every tick, found one without"):
        used.step(np.zeros((0, 2)))


def test_embodiments_say_how_much_of_a_chunk_is_executed():
    """The paper's appendix D has 16 of 50 actions at 20 Hz, and 25 of 50 at 50 Hz."""
    assert [
        (EMBODIMENTS[name].control_hz, EMBODIMENTS[name].execute_steps)
        for name in ("franka_osc", "mobile_aloha")
    ] == [
        (20, 16),
        (50, 25),
    ]


def test_temporal_ensemble_weighs_the_oldest_most():
    """Of two chunks of two actions, the older says 0 at tick 1 and the newer says 1."""
    chunks = np.array([[[5.0], [0.0]], [[1.0], [7.0]]])
    actions, asked = run(TemporalEnsemble(decay=np.log(2)), chunks)
    assert asked == [0, 1]
    np.testing.assert_allclose(actions[:, 0], [5.0, 1 / 3])  # weights 1 and 1/2


def test_temporal_ensemble_online_is_the_offline_average():
    """ACT's table gives the same actions.

    Row t holds the chunk of tick t at columns t ... t + H - 1. An action is the weighted mean of
    the filled part of a column.
    """
    ticks, horizon, dims = 60, 16, 7
    chunks = np.random.default_rng(0).normal(size=(ticks, horizon, dims)).astype(np.float32)
    table = np.full((ticks, ticks + horizon, dims), np.nan)
    for t in range(ticks):
        table[t, t : t + horizon] = chunks[t]
    online, _ = run(TemporalEnsemble(), chunks)
    for t in range(ticks):
        filled = table[~np.isnan(table[:, t, 0]), t]
        assert len(filled) == min(t + 1, horizon)
        weights = np.exp(-0.01 * np.arange(len(filled)))
        np.testing.assert_allclose(
            online[t], (weights[:, None] * filled).sum(0) / weights.sum(), atol=1e-6
        )
    assert online.dtype == np.float32


def test_an_episode_leaves_nothing_behind():
    fresh = TemporalEnsemble()
    _, used = fresh.step(np.ones((4, 2)))
    assert fresh.chunks == () and len(used.chunks) == 1


def test_angles_that_turn_are_averaged_the_short_way():
    ensemble = TemporalEnsemble(decay=0.0, turns=((-np.pi, 2 * np.pi), None, (0.0, 2 * np.pi)))
    _, ensemble = ensemble.step(np.array([[9.0, 9, 9], [3.1, 3.1, 6.2]]))
    action, _ = ensemble.step(np.array([[-3.0, -3.1, 0.1]]))
    # 3.1 and 3.283, which is -3.0 and a turn; 3.1 and -3.1 plainly; 6.2 and 6.383
    np.testing.assert_allclose(action, [0.05 - np.pi, 0, 0.00841], atol=1e-5)
