"""π0.5 is a variant of the one model: what differs from π0, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax.models import lora, masks
from pi0_jax.models.gemma import norm, residual, rms_norm
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import VARIANTS, Pi0, parameter_shapes
from pi0_jax.models.sampling import pack, sample
from pi0_jax.observation import Observation
from tests import test_pi0
from tests.test_pi0 import (
    B,
    actions,
    assert_close,
    drawn_actions,
    drawn_observation,
    moved,
    velocity,
)

CONFIG = VARIANTS["pi05_pico"]


@pytest.fixture(scope="module")
def model() -> Pi0:
    return Pi0(CONFIG, ComputeOptions(dtype=jnp.float32))


@pytest.fixture(scope="module")
def initial(model):
    return jax.jit(lambda key: model.init(key, method=Pi0.declare))(jax.random.key(0))["params"]


@pytest.fixture(scope="module")
def params(initial):
    return moved(initial)


@pytest.fixture(scope="module")
def observation() -> Observation:
    return drawn_observation(CONFIG, tokens=12)


@pytest.fixture(scope="module")
def noisy_actions():
    return drawn_actions(CONFIG)


def test_what_differs_from_pi0_is_the_experts_norms_and_the_projections_of_state_and_time():
    pi0, pi05 = (set(flatten(parameter_shapes(VARIANTS[name]))) for name in ("pi0", "pi05"))
    norms = ("layers/pre_attention_norm_1", "layers/pre_ffw_norm_1", "final_norm_1")
    dense = ("kernel", "bias")
    assert pi0 - pi05 == {f"PaliGemma/llm/{name}/scale" for name in norms} | {
        f"{name}/{part}"
        for name in ("state_proj", "action_time_mlp_in", "action_time_mlp_out")
        for part in dense
    }
    assert pi05 - pi0 == {
        f"PaliGemma/llm/{name}/Dense_0/{part}" for name in norms for part in dense
    } | {f"{name}/{part}" for name in ("time_mlp_in", "time_mlp_out") for part in dense}


def test_no_token_stands_for_the_state():
    """The actions follow the prefix; its second token is padding."""
    valid = jnp.array([[True, False, True]])
    expected = [
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 1],
        [1, 0, 1, 0, 0, 1, 1],
    ]
    mask = masks.full_mask(valid, horizon=2, draws=2, states=0)
    np.testing.assert_array_equal(mask[0], np.array(expected, bool))
    positions = masks.full_positions(valid, horizon=2, draws=2, states=0)
    np.testing.assert_array_equal(positions[0, 3:], [2, 3, 2, 3])


def test_a_condition_scales_shifts_and_gates():
    """Of a dense layer's output the first third scales, the second shifts, the last gates."""
    x = jnp.array([[[3.0, 4.0], [1.0, -1.0]]])  # two tokens
    scale, shift, gate = jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0]), jnp.array([0.5, 0.0])
    bias = jnp.concatenate([scale, shift, gate])
    params = {"Dense_0": {"kernel": jnp.zeros((2, 6)), "bias": bias}}
    y, gates = norm(params, x, jnp.ones((1, 1, 2)))
    np.testing.assert_allclose(y, rms_norm(x, jnp.zeros(2)) * (1 + scale) + shift, rtol=1e-6)
    np.testing.assert_allclose(residual(x, 2 * x, gates), x + gate * 2 * x, rtol=1e-6)


def test_training_starts_with_every_gate_closed(initial, model, observation, noisy_actions):
    """The dense layers of the norms start at zero: no branch, no prefix and no time is read."""
    flat = flatten(initial)
    assert not any(np.any(leaf) for path, leaf in flat.items() if "norm_1/Dense_0" in path)
    x_t, t = noisy_actions
    before = velocity(model, initial, observation, x_t, t)
    other = observation._replace(tokens=observation.tokens.at[:, 1].set(9))
    np.testing.assert_array_equal(velocity(model, initial, other, x_t, 1 - t), before)


def test_time_is_read_and_the_state_array_is_not(model, params, observation, noisy_actions):
    x_t, t = noisy_actions
    before = velocity(model, params, observation, x_t, t)
    other = observation._replace(state=-observation.state)
    np.testing.assert_array_equal(velocity(model, params, other, x_t, t), before)
    changed = velocity(model, params, observation, x_t, t.at[:, 1].add(0.1)) != before
    np.testing.assert_array_equal(jnp.any(changed, axis=(2, 3)), [[False, True, False]] * B)


# What holds for π0 holds here too; these tests take the fixtures of this file.
test_draws_with_a_time_each_equal_draws_alone = test_pi0.test_draws_together_equal_draws_alone
test_cached_sampling_equals_full_recomputation = (
    test_pi0.test_cached_sampling_equals_full_recomputation
)
test_a_dropped_camera_equals_a_masked_one = test_pi0.test_a_dropped_camera_equals_a_masked_one


@pytest.mark.parametrize(("scan", "remat"), [(False, "none"), (True, "full"), (False, "dots")])
def test_scan_and_remat_change_no_number(model, params, observation, noisy_actions, scan, remat):
    given = (model, params, observation, noisy_actions)
    test_pi0.test_scan_and_remat_change_no_number(*given, scan, remat)


def test_packed_weights_give_the_same_actions(params, observation, noisy_actions):
    """In bfloat16 the norms' dense layers are packed in bfloat16, as they are multiplied.

    So is the embedding table, which is not multiplied: what comes out is as from the rounded table.
    """
    noise = noisy_actions[0][:, 0]
    model = Pi0(CONFIG, ComputeOptions(dtype=jnp.bfloat16, scan_layers=False))
    packed = pack(params, jnp.bfloat16, scan_layers=False)
    assert packed["PaliGemma/llm/layers/pre_ffw_norm_1/Dense_0/kernel/0"].dtype == jnp.bfloat16
    assert packed["PaliGemma/llm/layers/pre_ffw_norm/scale/0"].dtype == jnp.float32
    table = "PaliGemma/llm/embedder/input_embedding"
    rounded = flatten(params)
    rounded[table] = rounded[table].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(packed[table], rounded[table])
    run = jax.jit(lambda w: sample(w, observation, noise, model=model, num_steps=2))
    expected = run(unflatten(rounded))
    np.testing.assert_array_equal(run(packed), expected)


def test_lora_adapts_what_it_adapts_in_pi0(params, observation, noisy_actions):
    """Factors of the expert's layers, with b not zero, equal weights with the product added."""
    rules = (LoraRule("llm/layers/(attn|mlp).*_1/", rank=2, alpha=4.0),)
    factors = lora.init(jax.random.key(4), params, rules)
    factors = jax.tree.map(lambda leaf: leaf + 0.05, factors)
    flat = flatten(params)
    pairs = flatten(factors)
    for path in {path.rpartition("/")[0] for path in pairs}:
        a, b = pairs[f"{path}/a"], pairs[f"{path}/b"]
        flat[path] = lora.add(flat[path], a, b, rules=rules, path=path, dtype=jnp.float32)
    merged = unflatten(flat)
    model = Pi0(CONFIG, ComputeOptions(dtype=jnp.float32, lora=rules))
    noise = noisy_actions[0][:, 0]
    adapted = jax.jit(
        lambda: sample(params, observation, noise, model=model, num_steps=2, factors=factors)
    )()
    assert_close(adapted, actions(model, merged, observation, noise, num_steps=2))
