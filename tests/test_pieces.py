"""Attention and MLPs in pieces are those in one: their values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi0_jax.models import gemma, layers, pieces
from pi0_jax.train.state import make_model, run_mesh
from tests.step_data import reach_config

B, T, S, N, K, H, D, F = 2, 5, 7, 6, 2, 8, 12, 16
TOLERANCES = {jnp.float32: 1e-5, jnp.bfloat16: 3e-2}  # of the largest number


def drawn(*shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    ]


def check_same(whole, in_pieces, arguments, dtype):
    """Holds values and gradients against each other."""
    (weights,) = drawn((B, T, *jax.eval_shape(whole, *arguments).shape[2:]))

    def scored(function):
        def score(*arguments):
            result = function(*arguments)
            return jnp.sum(weights * result.astype(jnp.float32)), result

        return jax.jit(jax.grad(score, argnums=tuple(range(len(arguments))), has_aux=True))

    for found, expected in zip(
        jax.tree.leaves(scored(in_pieces)(*arguments)),
        jax.tree.leaves(scored(whole)(*arguments)),
        strict=True,
    ):
        found, expected = np.float32(found), np.float32(expected)
        np.testing.assert_allclose(
            found, expected, atol=TOLERANCES[dtype] * np.abs(expected).max(), rtol=0
        )


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_attention_by_heads(dtype):
    """Groups of three query heads share two heads of keys and values; some keys are not seen."""
    q, k, v = drawn((B, T, N, H), (B, S, K, H), (B, S, K, H), dtype=dtype)
    mask = jnp.arange(S) <= jnp.arange(T)[:, None] + 2
    mask = jnp.broadcast_to(mask, (B, T, S))
    whole = partial(gemma.attend, mask=mask)
    assert (pieces.by_head(gemma.attend, q, k, v, mask)).dtype == dtype
    check_same(whole, lambda q, k, v: pieces.by_head(gemma.attend, q, k, v, mask), (q, k, v), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("columns", [4, F, 5])  # four pieces; one; one, since 5 does not divide F
def test_an_mlp_by_columns(dtype, columns, monkeypatch):
    monkeypatch.setattr(pieces, "MLP_COLUMNS", columns)
    gating, linear, x = drawn((2, D, F), (F, D), (B, T, D), dtype=dtype)
    params = {"gating_einsum": gating, "linear": linear}
    mlp = partial(gemma.mlp, constrain=layers.unconstrained)
    check_same(mlp, partial(pieces.by_columns, mlp), (params, x), dtype)


def test_only_a_tpus_training_computes_in_pieces():
    run = reach_config(variant="pico", remat="full")
    assert not make_model(run, run_mesh(run, jax.devices())).options.in_pieces
