"""Flow matching is checked: density of times, direction, losses, Euler steps.

One target has a velocity that is known in closed form.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from pi0_jax import flow

B, K, H, D = 3, 2, 4, 5


@pytest.fixture
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    actions, noise = jax.random.normal(keys[0], (B, H, D)), jax.random.normal(keys[1], (B, K, H, D))
    return actions, noise, jax.random.uniform(keys[2], (B, K))


def test_times_follow_the_papers_density():
    """τ = s(1 - x) with x ~ Beta(1.5, 1) and s = 0.999; t = 1 - τ.

    So the mean of τ is 0.3996, and nothing is above s.
    """
    t = np.asarray(flow.sample_time(jax.random.key(0), (200_000,)), np.float64)
    tau = 1 - t
    assert tau.min() >= -1e-6 and tau.max() <= 0.999 + 1e-6
    x = stats.beta(1.5, 1)
    assert tau.mean() == pytest.approx(
        0.999 * (1 - x.mean()), abs=3 * 0.999 * x.std() / np.sqrt(len(t))
    )
    assert tau.std() == pytest.approx(0.999 * x.std(), rel=0.01)
    assert stats.kstest(1 - tau / 0.999, x.cdf).pvalue > 0.01


def test_the_default_times_are_those_of_before_and_the_others_have_their_densities():
    key = jax.random.key(1)
    u = jax.random.uniform(key, (1000,))
    before = (1.0 - flow.TIME_CUTOFF) + flow.TIME_CUTOFF * u ** (2.0 / 3.0)
    np.testing.assert_array_equal(flow.sample_time(key, (1000,)), before)
    logit_normal = stats.norm(0, 1)
    for density, cdf in (
        ("uniform", stats.uniform().cdf),
        ("logit_normal", lambda x: logit_normal.cdf(np.log(x / (1 - x)))),
    ):
        t = np.asarray(flow.sample_time(key, (50_000,), density), np.float64)
        assert t.min() >= 0.001 - 1e-6 and t.max() <= 1
        assert stats.kstest((t - 0.001) / 0.999, cdf).pvalue > 0.01


def test_time_runs_from_noise_to_data(arrays):
    actions, noise, _ = arrays
    np.testing.assert_array_equal(flow.interpolate(actions, noise, jnp.ones((B, K))), noise)
    at_zero = flow.interpolate(actions, noise, jnp.zeros((B, K)))
    np.testing.assert_array_equal(at_zero, jnp.broadcast_to(actions[:, None], noise.shape))


def test_loss_is_a_samples_own_mean(arrays):
    actions, noise, t = arrays
    loss = flow.loss(lambda x, t: jnp.zeros_like(x), actions, noise, t)
    target = np.asarray(noise) - np.asarray(actions)[:, None]
    np.testing.assert_allclose(loss, np.mean(target**2, axis=(2, 3)), rtol=1e-6)


def test_masked_loss_counts_valid_steps_and_real_dimensions_only(arrays):
    actions, noise, t = arrays
    steps = np.arange(H) < np.array([4, 2, 1])[:, None]
    dims = np.arange(D) < np.array([5, 3, 1])[:, None]
    noise = flow.mask_dims(noise, jnp.asarray(dims))
    loss = flow.loss(
        lambda x, t: jnp.zeros_like(x),
        actions,
        noise,
        t,
        step_mask=jnp.asarray(steps),
        dim_mask=jnp.asarray(dims),
    )
    target = np.asarray(noise) - np.asarray(actions)[:, None]
    for b, (h, d) in enumerate([(4, 5), (2, 3), (1, 1)]):
        np.testing.assert_allclose(
            loss[b], np.mean(target[b, :, :h, :d] ** 2, axis=(1, 2)), rtol=1e-5
        )


def test_noise_is_zero_where_a_robot_has_no_dimension(arrays):
    _, noise, _ = arrays
    dims = jnp.arange(D) < jnp.array([5, 3, 1])[:, None]
    masked = flow.mask_dims(noise, dims)
    assert not np.any(masked[1, ..., 3:]) and not np.any(masked[2, ..., 1:])
    np.testing.assert_array_equal(masked[0], noise[0])
    np.testing.assert_array_equal(flow.mask_dims(noise[:, 0], dims), masked[:, 0])


@pytest.mark.parametrize("num_steps", [1, 3, 10, 37])
def test_euler_steps_visit_the_right_times(num_steps):
    """The velocity v = t integrates to sum(t_i) / N over t_i = 1, 1 - 1/N, ..., 1/N."""
    noise = jnp.ones((B, H, D))
    out = flow.integrate(
        lambda x, t: jnp.broadcast_to(t[:, :, None, None], x.shape), noise, num_steps
    )
    np.testing.assert_allclose(out, 1 - np.mean(1 - np.arange(num_steps) / num_steps), atol=1e-6)


def test_the_true_velocity_of_a_point_leads_there_in_any_number_of_steps(arrays):
    actions, noise, _ = arrays
    for num_steps in (1, 10):
        out = flow.integrate(
            lambda x, t: (x - actions[:, None]) / t[:, :, None, None], noise[:, 0], num_steps
        )
        np.testing.assert_allclose(out, actions, atol=1e-5)


def test_integration_sums_in_float32():
    out = flow.integrate(
        lambda x, t: jnp.full(x.shape, 1e-3, jnp.bfloat16), jnp.ones((1, 1, 1)), 1000
    )
    # 1,000 additions in float32 may be off by 1,000 half units in the last place, 6e-5. In bfloat16
    # the sum would stall.
    np.testing.assert_allclose(out, 1 - float(jnp.bfloat16(1e-3)), rtol=6e-5)


def test_fewer_than_one_step_is_an_error():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        flow.integrate(lambda x, t: x, jnp.zeros((1, 1, 1)), 0)


def gaussian_velocity(x, t, mean, std):
    """Returns E[noise - actions | x_t = x] for actions ~ N(mean, std²) and noise ~ N(0, 1).

    Both are jointly Gaussian with x_t.
    """
    variance = t**2 + (1 - t) ** 2 * std**2
    return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)


def test_a_tiny_model_recovers_the_closed_form_velocity_of_a_gaussian():
    """A three-layer network trained with our times, interpolant and loss learns the velocity.

    The relative error is at most 5%.
    """
    mean, std, batch, draws = 0.7, 0.4, 256, 8

    def net(params, x, t):
        h = jnp.concatenate([x, t[:, :, None, None] + jnp.zeros_like(x)], axis=-1)
        for i, (w, b) in enumerate(params):
            h = h @ w + b
            h = jax.nn.swish(h) if i < len(params) - 1 else h
        return h

    keys = jax.random.split(jax.random.key(0), 3)
    sizes = [(2, 64), (64, 64), (64, 1)]
    params = [
        (jax.random.normal(k, s) * s[0] ** -0.5, jnp.zeros(s[1]))
        for k, s in zip(keys, sizes, strict=True)
    ]
    steps = 2000
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def update(carry, key):
        params, opt_state = carry
        a_key, n_key, t_key = jax.random.split(key, 3)
        actions = mean + std * jax.random.normal(a_key, (batch, 1, 1))
        noise, t = (
            jax.random.normal(n_key, (batch, draws, 1, 1)),
            flow.sample_time(t_key, (batch, draws)),
        )
        gradient = jax.grad(
            lambda p: jnp.mean(flow.loss(lambda x, t: net(p, x, t), actions, noise, t))
        )(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.jit(
        lambda c: jax.lax.scan(update, c, jax.random.split(jax.random.key(1), steps))
    )((params, optimizer.init(params)))
    a_key, n_key, t_key = jax.random.split(jax.random.key(2), 3)
    t = flow.sample_time(t_key, (4096, 1))
    actions = mean + std * jax.random.normal(a_key, (4096, 1, 1))
    x = flow.interpolate(actions, jax.random.normal(n_key, (4096, 1, 1, 1)), t)
    expected = gaussian_velocity(x, t[:, :, None, None], mean, std)
    error = jnp.sqrt(
        jnp.mean(jnp.square(net(params, x, t) - expected)) / jnp.mean(jnp.square(expected))
    )
    assert error <= 0.05, float(error)
    # And its flow turns noise into the Gaussian.
    samples = flow.integrate(
        lambda x, t: net(params, x, t), jax.random.normal(jax.random.key(3), (20_000, 1, 1)), 50
    )
    assert float(jnp.mean(samples)) == pytest.approx(mean, abs=0.03)
    assert float(jnp.std(samples)) == pytest.approx(std, rel=0.07)
