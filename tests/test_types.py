"""Shapes and dtypes in annotations are checked in tests (conftest.py), and mistakes are refused."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from pi0_jax import flow
from pi0_jax.models import VARIANTS, Pi0, masks
from pi0_jax.models.sampling import apply
from pi0_jax.train import step

B, K, H, D = 2, 3, 4, 6


def test_axes_of_one_name_have_one_size():
    actions, noise = jnp.zeros((B, H, D)), jnp.zeros((B, K, H, D))
    assert flow.interpolate(actions, noise, jnp.zeros((B, K))).shape == (B, K, H, D)
    with pytest.raises(TypeCheckError, match="B K"):
        flow.interpolate(actions, noise, jnp.zeros((B, K + 1)))


def test_dtypes_are_those_of_the_annotation():
    with pytest.raises(TypeCheckError, match="Bool"):
        masks.prefix_mask(jnp.ones((B, 5), jnp.int32))
    with pytest.raises(TypeCheckError, match="Int32"):
        step.row_keys(jax.random.key(0), jnp.zeros((B,)))


def test_shapes_are_checked_while_a_model_is_traced():
    model = Pi0(VARIANTS["pico"])
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), method=Pi0.declare))["params"]

    def suffix(params, rows):
        state, x_t = jnp.zeros((rows, D)), jnp.zeros((B, K, H, D))
        return apply(model, params, None, Pi0.embed_suffix, state, x_t, jnp.zeros((B, K)))

    assert jax.eval_shape(lambda params: suffix(params, B), params).shape[:2] == (B, 1 + K * H)
    with pytest.raises(TypeCheckError, match="B K H D"):
        jax.eval_shape(lambda params: suffix(params, B + 1), params)
