"""Expressions over parameter paths say what trains and what decays, and in which dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pi0_jax import policy_config, sharding
from pi0_jax.errors import InputError
from pi0_jax.models import trainable
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.trainable import Trainable
from pi0_jax.train import config
from pi0_jax.train.config import RunConfig
from pi0_jax.train.optimizer import learning_rate, make_optimizer
from pi0_jax.train.state import (
    Footprint,
    abstract_run_state,
    bytes_per_device,
    footprint,
    jit_init,
    jit_train_step,
    make_model,
)
from pi0_jax.train.step import averaged
from tests.step_data import CONFIG, OPTIONS, make_batch, reach_config

IMAGES = "PaliGemma/img/"
NOT_THE_EXPERT = (IMAGES, r"PaliGemma/llm/(?!.*_1/)")


def run_config(**changes) -> RunConfig:
    small = dict(variant="pico", action_dim=6, horizon=4, max_tokens=12)
    return reach_config(**small | dict(warmup_steps=0, steps=100, learning_rate=1e-2) | changes)


def paths(tree) -> set[str]:
    return {
        jax.tree_util.keystr(key, simple=True, separator="/")
        for key, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


# ---- the trees


def test_one_tree_of_what_is_trained():
    """The head is trained, the body is frozen, and layers/w is adapted."""
    params = {
        "head": np.float32([1, 2]),
        "body": np.float32([3, 4]),
        "layers": {"w": np.float32([5, 6])},
    }
    factors = {"layers": {"w": {"a": np.float32([7]), "b": np.float32([8])}}}
    part = Trainable(("^body",), "bfloat16", (LoraRule("layers/", 1, 1.0),))
    trained = trainable.trained_part(params, factors, part)
    assert paths(trained) == {"head", "layers/w/a", "layers/w/b"}
    assert jax.tree.map(lambda w: str(w.dtype), trainable.as_stored(params, part)) == {
        "head": "float32", "body": "bfloat16", "layers": {"w": "bfloat16"}
    }  # fmt: skip
    doubled = jax.tree.map(lambda w: 2 * w, trained)
    weights, products = trainable.with_trained(params, doubled)
    assert (
        weights["head"].tolist(),
        weights["body"].tolist(),
        weights["layers"]["w"].tolist(),
    ) == ([2, 4], [3, 4], [5, 6])
    assert products == {"layers": {"w": {"a": [14], "b": [16]}}}
    assert trainable.trained_part(weights, products, part) == doubled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(frozen=("img", "imgs/")),
            r"config\.frozen\[1\] 'imgs/': matches no parameter; expected one such as \S+",
        ),
        (
            dict(frozen=("img[",)),
            r"config\.frozen\[0\] 'img\[': expected a regular expression, found: unterminated character set.*",
        ),
        (
            dict(frozen=(".",)),
            r"config\.frozen is \('\.',\): all 50 parameters match; expected one that is left to train",
        ),
        (
            dict(no_decay=("biases$",)),
            r"config\.no_decay\[0\] 'biases\$': matches no parameter; expected one such as \S+",
        ),
        (
            dict(frozen_dtype="float16"),
            r"config\.frozen_dtype is 'float16'; expected one of float32, bfloat16",
        ),
        (
            dict(lora=(dict(path="mlp_2/", rank=2, alpha=2.0),)),
            r"config\.lora\[0\] 'mlp_2/': matches no parameter; expected one such as \S+",
        ),
        (
            dict(lora=(dict(path="llm/layers/.*_1", rank=2, alpha=2.0),)),
            r"config\.lora\[0\]\.path 'llm/layers/\.\*_1' matches \S+norm_1/scale; expected matrices of the layers only",
        ),
        (
            dict(lora=(dict(path="mlp_1/linear", rank=25, alpha=2.0),)),
            r"config\.lora\[0\]\.rank is 25; expected 1 to 24, for PaliGemma/llm/layers/mlp_1/linear of shape \[3, 40, 24\]",
        ),
        (
            dict(lora=(dict(path="attn/q_einsum/", rank=0, alpha=2.0),)),
            r"config\.lora\[0\]\.rank is 0; expected 1 to 8, .*",
        ),
        (
            dict(lora=(dict(path="mlp/linear", rank=2, alpha=-1.0),)),
            r"config\.lora\[0\]\.alpha is -1\.0; expected a positive number",
        ),
        (dict(lora=(dict(path="mlp/linear", rank=2),)), r"config\.lora\[0\] lacks alpha"),
        (
            dict(
                lora=(
                    dict(path="layers/mlp", rank=2, alpha=2.0),
                    dict(path="mlp_1/linear", rank=4, alpha=4.0),
                )
            ),
            r"config\.lora\[1\]\.path 'mlp_1/linear': rules before it match all its parameters; expected one that is left",
        ),
    ],
)
def test_expressions_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        run_config(**changes)


def test_what_changes_numbers_is_not_free():
    ours = run_config()
    theirs = dataclasses.replace(
        ours, accumulate=2, frozen=(IMAGES,), first_moment_dtype="bfloat16"
    )
    assert config.differing_fields(ours, theirs) == [
        f"frozen: () now, ('{IMAGES}',) in the checkpoint",
        "first_moment_dtype: 'float32' now, 'bfloat16' in the checkpoint",
    ]


# ---- the optimizer


def test_decay_leaves_alone_what_it_is_told_to():
    """Without a gradient a step of size 0.01 shrinks by 0.01 x 0.5."""
    run = run_config(weight_decay=0.5, no_decay=(r"(bias|scale)$", r"embedding$"))
    params = {
        "norm": {"scale": jnp.ones(2)},
        "embedder": {"input_embedding": jnp.ones(2)},
        "mlp": {"linear": jnp.ones(2)},
    }
    optimizer = make_optimizer(run)
    still = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.moments(still, jnp.zeros(()), optimizer.init(params))
    after = optimizer.step(state, params)
    np.testing.assert_allclose(after["mlp"]["linear"], [0.995, 0.995], rtol=1e-6)
    assert np.all(after["norm"]["scale"] == 1) and np.all(after["embedder"]["input_embedding"] == 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_takes_the_steps_of_optax(dtype):
    """Ten steps, three of them clipped; state and parameters agree in structure and to rounding."""
    run = run_config(weight_decay=0.5, no_decay=("bias$",), clip_norm=1.0, first_moment_dtype=dtype)
    ours, theirs = make_optimizer(run), optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            learning_rate(run), b1=run.b1, b2=run.b2, eps=run.eps, weight_decay=0.5, mu_dtype=jnp.dtype(dtype),
            mask={"w": True, "bias": False},
        ),
    )  # fmt: skip
    params = expected = {"w": jnp.linspace(-1.0, 1.0, 7), "bias": jnp.linspace(0.0, 1.0, 5)}
    state, expected_state = ours.init(params), theirs.init(params)
    clipped = 0
    for seed in range(10):
        draw = np.random.default_rng(seed).normal(0, 0.25, 12).astype(np.float32)
        gradient = {"w": jnp.array(draw[:7]), "bias": jnp.array(draw[7:])}
        norm = optax.tree.norm(gradient)
        clipped += int(norm > 1.0)
        moments = ours.moments(gradient, norm, ours.unrounded(state))
        params, state = ours.step(moments, params), ours.rounded(moments)
        updates, expected_state = theirs.update(gradient, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    assert clipped == 3
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    # optax multiplies a bfloat16 moment in bfloat16, ours in float32: both round, at other places.
    share = {"float32": 2e-6, "bfloat16": 2**-6}[dtype]  # of a leaf's largest number

    def close(a: jax.Array, b: jax.Array) -> None:
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=share * np.abs(b).max(), rtol=0)

    jax.tree.map(close, (params, state), (expected, expected_state))


def test_the_first_moment_may_be_bfloat16():
    params = {"w": jnp.ones(3)}
    optimizer = make_optimizer(run_config(first_moment_dtype="bfloat16"))
    state = optimizer.unrounded(optimizer.init(params))
    state = optimizer.rounded(optimizer.moments({"w": jnp.full(3, 0.1)}, jnp.float32(0.2), state))
    adam = state[1][0]
    assert (adam.mu["w"].dtype, adam.nu["w"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(np.float32(adam.mu["w"]), 0.01, rtol=4e-3)  # a tenth of the gradient


# ---- the step


def test_frozen_leaves_cost_their_values_and_stay_as_they_are():
    """The expert and the projections train; PaliGemma is frozen in bfloat16."""
    run = run_config(frozen=NOT_THE_EXPERT, frozen_dtype="bfloat16")
    part = policy_config.trainable_part(run)
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
    model, optimizer = make_model(run, mesh), make_optimizer(run)
    state = jit_init(model, optimizer, mesh, part)(jax.random.key(0))
    trained = paths(state.ema)
    assert {path.split("/")[0] for path in trained if not path.startswith("PaliGemma/llm/")} == {
        "state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj"
    }  # fmt: skip
    assert all("_1/" in path for path in trained if path.startswith("PaliGemma"))
    assert paths(state.opt_state[1][0].mu) == trained
    assert {str(w.dtype) for w in jax.tree.leaves(state.params["PaliGemma"]["img"])} == {"bfloat16"}

    before = jax.device_get(state.params)
    step = jit_train_step(model, optimizer, OPTIONS._replace(trainable=part), state)
    losses = []
    for _ in range(8):
        state, metrics = step(state, sharding.place_batch(make_batch(1), mesh), np.uint32(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    after = jax.device_get(state.params)
    same = jax.tree.map(np.array_equal, before, after)
    # the batch's states are zero
    assert {path for path in paths(before) if not at(same, path)} == trained - {"state_proj/kernel"}
    assert not np.array_equal(
        averaged(state).params["action_in_proj"]["kernel"], after["action_in_proj"]["kernel"]
    )
    images = (
        tree["PaliGemma"]["img"]["head"]["kernel"]
        for tree in (averaged(state).params, state.params)
    )
    assert next(images) is next(images)


def at(tree, path: str):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def test_the_footprint_counts_what_a_device_holds():
    """Pico's expert alone is trained on fsdp 2; the numbers are by hand from the shapes."""
    run = run_config(
        frozen=NOT_THE_EXPERT,
        frozen_dtype="bfloat16",
        first_moment_dtype="bfloat16",
        accumulate=2,
        batch_size=4,
    )
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
    state = abstract_run_state(run, mesh)
    table = {"table": state.params["PaliGemma"]["llm"]["embedder"]["input_embedding"]}
    # half the columns, 2 bytes each
    assert (
        bytes_per_device(table) == CONFIG.gemma.vocab_size * CONFIG.gemma.experts[0].width // 2 * 2
    )
    found = footprint(run, mesh)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.ema))
    everything = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    held, counters = bytes_per_device(state.ema), 2 * 4  # Adam's and the schedule's, int32
    expected = Footprint(
        parameters=everything,
        trained=trained,
        weights=bytes_per_device(state.params),
        gradients=2 * held,
        optimizer=held * 3 // 2 + counters,
        moving_average=held,
    )
    assert found == expected
    without = footprint(dataclasses.replace(run, ema_decay=0.0), mesh)
    assert without == expected._replace(moving_average=0)
