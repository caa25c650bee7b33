"""The model has the published tree, and the properties that its masks and caches need."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax.models import masks
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, Pi0, Pi0Config, parameter_shapes
from pi0_jax.models.sampling import sample
from pi0_jax.observation import CAMERA_SLOTS, Observation

CONFIG = VARIANTS["pico"]
B, K, H, D = 2, 3, CONFIG.horizon, CONFIG.action_dim


@pytest.fixture(scope="module")
def model() -> Pi0:
    return Pi0(CONFIG, ComputeOptions(dtype=jnp.float32))


@pytest.fixture(scope="module")
def params(model):
    return moved(
        jax.jit(lambda key: model.init(key, method=Pi0.declare))(jax.random.key(0))["params"]
    )


@pytest.fixture(scope="module")
def observation() -> Observation:
    return drawn_observation(CONFIG, tokens=CONFIG.max_tokens)


@pytest.fixture(scope="module")
def noisy_actions():
    return drawn_actions(CONFIG)


def moved(params):
    """Returns random parameters, also where initialisers give zeros, so that all count."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
    )


def drawn_observation(config: Pi0Config, *, tokens: int) -> Observation:
    """Returns two observations with one and two absent cameras, and one with padded tokens."""
    keys = jax.random.split(jax.random.key(2), 5)
    side = config.vision.image_size
    return Observation(
        images={
            slot: jax.random.uniform(key, (B, side, side, 3), minval=-1)
            for slot, key in zip(CAMERA_SLOTS, keys[:3], strict=True)
        },
        image_masks={
            "base_0_rgb": jnp.array([True, True]),
            "left_wrist_0_rgb": jnp.array([True, False]),
            "right_wrist_0_rgb": jnp.array([False, False]),
        },
        tokens=jax.random.randint(keys[3], (B, tokens), 3, 500),
        token_mask=jnp.arange(tokens) < jnp.array([[tokens], [5]]),
        state=jax.random.normal(keys[4], (B, config.action_dim)),
    )


def drawn_actions(config: Pi0Config):
    """Returns noisy actions [B, K, H, D] and their times [B, K]."""
    x_key, t_key = jax.random.split(jax.random.key(3))
    x_t = jax.random.normal(x_key, (B, K, config.horizon, config.action_dim))
    return x_t, jax.random.uniform(t_key, (B, K))


def velocity(model, params, observation, x_t, t):
    return jax.jit(lambda p, o, x, t: model.apply({"params": p}, o, x, t, method=Pi0.velocity))(
        params, observation, x_t, t
    )


def actions(model, params, observation, noise, num_steps=3):
    return jax.jit(lambda p, o, n: sample(p, o, n, model=model, num_steps=num_steps))(
        params, observation, noise
    )


def assert_close(a, b, tolerance=1e-5):
    assert jnp.max(jnp.abs(a - b)) <= tolerance * jnp.max(jnp.abs(b)), float(
        jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))
    )


@pytest.mark.parametrize(
    ("variant", "parameters"), [("pi0", 3_238_048_528), ("pi05", 3_353_433_872)]
)
def test_full_size_tree_is_the_published_one(variant, parameters):
    """The published checkpoint's paths and shapes are all there, and nothing is allocated."""
    shapes = parameter_shapes(VARIANTS[variant])
    ours = {path: list(leaf.shape) for path, leaf in flatten(shapes).items()}
    published = json.loads((Path(__file__).parent / f"published_{variant}_tree.json").read_text())
    assert ours == {path: shape for path, (shape, _) in published["tree"].items()}
    count = sum(np.prod(shape, dtype=np.int64) for shape in ours.values())
    assert count == published["parameters"] == parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tables_say_what_initialisation_makes(variant):
    made = jax.eval_shape(
        lambda: Pi0(VARIANTS[variant]).init(jax.random.key(0), method=Pi0.declare)
    )["params"]
    assert parameter_shapes(VARIANTS[variant]) == made


def test_full_size_forward_has_the_expected_shapes():
    config = VARIANTS["pi0"]
    model = Pi0(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), method=Pi0.declare))
    spec = jax.ShapeDtypeStruct
    observation = Observation(
        images={slot: spec((1, 224, 224, 3), jnp.float32) for slot in CAMERA_SLOTS},
        image_masks={slot: spec((1,), bool) for slot in CAMERA_SLOTS},
        tokens=spec((1, 48), jnp.int32),
        token_mask=spec((1, 48), bool),
        state=spec((1, 32), jnp.float32),
    )
    out = jax.eval_shape(
        lambda v, o, x, t: model.apply(v, o, x, t, method=Pi0.velocity),
        shapes, observation, spec((1, 1, 50, 32), jnp.float32), spec((1, 1), jnp.float32),
    )  # fmt: skip
    assert out.shape == (1, 1, 50, 32) and out.dtype == jnp.float32

    def prefill(v, o):
        prefix, valid = model.apply(v, o, method=Pi0.embed_prefix)
        return model.apply(v, prefix, valid, method=Pi0.prefill), valid

    cache, valid = jax.eval_shape(prefill, shapes, observation)
    assert cache.keys.shape == (18, 1, 3 * 256 + 48, 1, 256) and valid.shape == (1, 816)


def test_dead_weights_of_the_last_layer_get_exactly_zero_gradient(
    model, params, observation, noisy_actions
):
    """The prefix's last layer is read only through its keys and values."""
    gradient = velocity_gradient(model, params, observation, noisy_actions)
    flat = {path.removeprefix("PaliGemma/llm/"): leaf for path, leaf in gradient.items()}
    dead = (
        "attn/q_einsum/w",
        "attn/attn_vec_einsum/w",
        "mlp/gating_einsum",
        "mlp/linear",
        "pre_ffw_norm/scale",
    )
    for name in dead:
        assert not np.any(flat[f"layers/{name}"][-1]), name
        assert np.all([np.any(layer) for layer in flat[f"layers/{name}"][:-1]]), name
    assert not np.any(flat["final_norm/scale"])
    for name in (
        "attn/kv_einsum/w",
        "attn/q_einsum_1/w",
        "attn/attn_vec_einsum_1/w",
        "mlp_1/gating_einsum",
        "mlp_1/linear",
    ):
        assert np.any(flat[f"layers/{name}"][-1]), name


def test_masked_pixels_and_padded_tokens_change_nothing(model, params, observation, noisy_actions):
    images = dict(observation.images)
    images["right_wrist_0_rgb"] = -images["right_wrist_0_rgb"]  # masked in both rows
    # masked in the second
    images["left_wrist_0_rgb"] = images["left_wrist_0_rgb"].at[1].multiply(0.5)
    tokens = jnp.where(observation.token_mask, observation.tokens, 7)
    other = observation._replace(images=images, tokens=tokens)
    np.testing.assert_array_equal(
        velocity(model, params, other, *noisy_actions),
        velocity(model, params, observation, *noisy_actions),
    )
    noise = noisy_actions[0][:, 0]
    np.testing.assert_array_equal(
        actions(model, params, other, noise), actions(model, params, observation, noise)
    )


def test_visible_pixels_and_tokens_do_change_the_velocity(
    model, params, observation, noisy_actions
):
    before = velocity(model, params, observation, *noisy_actions)
    for other in (
        observation._replace(
            images=observation.images | {"base_0_rgb": -observation.images["base_0_rgb"]}
        ),
        observation._replace(tokens=observation.tokens.at[:, 1].set(9)),
        observation._replace(state=-observation.state),
    ):
        assert jnp.all(
            jnp.any(velocity(model, params, other, *noisy_actions) != before, axis=(1, 2, 3))
        )


def test_prefix_does_not_depend_on_state_or_actions(model, params, observation, noisy_actions):
    """A joint pass over prefix and suffix that reads every expert shows it."""

    def prefix_output(self, observation, x_t, t):
        prefix, valid = self.embed_prefix(observation)
        suffix = self.embed_suffix(observation.state, x_t, t)
        layout = dict(horizon=H, draws=K)
        positions = jnp.concatenate(
            [masks.prefix_positions(valid), masks.suffix_positions(valid, **layout)], axis=1
        )
        (out, _), _ = self.PaliGemma.llm(
            (prefix, suffix), positions, masks.full_mask(valid, **layout), read=(True, True)
        )
        return out

    x_t, t = noisy_actions
    output = jax.jit(lambda o, x, t: model.apply({"params": params}, o, x, t, method=prefix_output))
    first = output(observation, x_t, t)
    second = output(observation._replace(state=-observation.state), -x_t, 1 - t)
    np.testing.assert_array_equal(first, second)


def test_cached_velocity_equals_the_full_forward(model, params, observation, noisy_actions):
    def cached(p, o, x_t, t):
        prefix, valid = model.apply({"params": p}, o, method=Pi0.embed_prefix)
        cache = model.apply({"params": p}, prefix, valid, method=Pi0.prefill)
        return model.apply({"params": p}, cache, valid, o.state, x_t, t, method=Pi0.cached_velocity)

    assert_close(
        jax.jit(cached)(params, observation, *noisy_actions),
        velocity(model, params, observation, *noisy_actions),
    )


def test_cached_sampling_equals_full_recomputation(model, params, observation, noisy_actions):
    x = noise = noisy_actions[0][:, 0]
    for i in range(5):
        t = jnp.full((B, 1), 1.0 - i / 5)
        x = x - velocity(model, params, observation, x[:, None], t)[:, 0] / 5
    assert_close(actions(model, params, observation, noise, num_steps=5), x)


def test_a_dropped_camera_equals_a_masked_one(model, params, observation, noisy_actions):
    images = {s: i for s, i in observation.images.items() if s != "right_wrist_0_rgb"}
    dropped = observation._replace(images=images)
    assert_close(
        velocity(model, params, dropped, *noisy_actions),
        velocity(model, params, observation, *noisy_actions),
    )
    noise = noisy_actions[0][:, 0]
    assert_close(actions(model, params, dropped, noise), actions(model, params, observation, noise))


def test_a_robot_without_cameras(model, params, observation, noisy_actions):
    blind = observation._replace(images={}, image_masks={})
    masked = observation._replace(image_masks={s: jnp.zeros(B, bool) for s in CAMERA_SLOTS})
    assert_close(
        velocity(model, params, blind, *noisy_actions),
        velocity(model, params, masked, *noisy_actions),
    )


def test_draws_together_equal_draws_alone(model, params, observation, noisy_actions):
    x_t, t = noisy_actions
    together = velocity(model, params, observation, x_t, t)
    for k in range(K):
        alone = velocity(model, params, observation, x_t[:, k : k + 1], t[:, k : k + 1])
        assert_close(together[:, k : k + 1], alone)


def velocity_gradient(model, params, observation, noisy_actions):
    """Returns the gradient of the mean squared velocity, by path."""

    def loss(p):
        v = model.apply({"params": p}, observation, *noisy_actions, method=Pi0.velocity)
        return jnp.mean(jnp.square(v))

    return flatten(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scan_and_remat_change_no_number(model, params, observation, noisy_actions, scan, remat):
    other = Pi0(model.config, ComputeOptions(dtype=jnp.float32, scan_layers=scan, remat=remat))
    given = (params, observation, noisy_actions)
    got, expected = velocity_gradient(other, *given), velocity_gradient(model, *given)
    assert got.keys() == expected.keys()
    for path, a in expected.items():
        if not path.endswith("key/bias"):  # rounding noise about zero
            assert jnp.max(jnp.abs(a - got[path])) <= 1e-5 * jnp.max(jnp.abs(a)) + 1e-9, path


def test_any_horizon_and_action_dim():
    config = dataclasses.replace(CONFIG, horizon=7, action_dim=3)
    model = Pi0(config)
    params = jax.jit(lambda key: model.init(key, method=Pi0.declare))(jax.random.key(0))["params"]
    observation = Observation(
        {}, {}, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), jnp.zeros((1, 3))
    )
    assert actions(model, params, observation, jnp.zeros((1, 7, 3)), num_steps=1).shape == (1, 7, 3)


def test_dimensions_that_a_robot_lacks_hold_zero_while_sampling(
    model, params, observation, noisy_actions
):
    dims = jnp.arange(D) < jnp.array([[4], [D]])
    noise = noisy_actions[0][:, 0]
    sampled = jax.jit(
        lambda n: sample(params, observation, n, model=model, num_steps=3, dim_mask=dims)
    )
    out = sampled(noise)
    np.testing.assert_array_equal(out[0, :, 4:], 0.0)
    garbage = noise.at[0, :, 4:].set(100.0)
    np.testing.assert_array_equal(out, sampled(garbage))
    assert_close(out[1], actions(model, params, observation, noise)[1])
