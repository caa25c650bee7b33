"""LoRA is checked: products by hand, and merged and unmerged weights, which agree.

A run also goes its whole way through training, checkpoint, policy and conversion.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import PartitionSpec

from pi0_jax import convert, policy_config, preprocess, sharding
from pi0_jax.checkpoints import RunCheckpoints
from pi0_jax.models import lora, trainable
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import Pi0
from pi0_jax.policy import Policy
from pi0_jax.train.optimizer import make_optimizer
from pi0_jax.train.state import (
    abstract_run_state,
    abstract_state,
    jit_init,
    jit_train_step,
    make_model,
)
from pi0_jax.train.step import averaged, state_from
from tests import policies
from tests.step_data import OPTIONS, make_batch
from tests.training import arrays

# Every weight that can be adapted, at two ranks.
RULES = (
    LoraRule(r"llm/layers/(attn/\w+_1/w|mlp_1)", 4, 8.0),
    LoraRule(r"llm/layers/(attn|mlp)|encoderblock/M.*kernel$", 2, 3.0),
)
AS_FIELDS = tuple(dict(path=rule.path, rank=rule.rank, alpha=rule.alpha) for rule in RULES)
Q, KV, OUT = (
    f"PaliGemma/llm/layers/attn/{name}/w" for name in ("q_einsum", "kv_einsum", "attn_vec_einsum_1")
)
IMAGE_KEYS = "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/kernel"


def random_like(tree, seed: int, scale: float):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32), tree
    )


@pytest.fixture(scope="module")
def run():
    return policies.run_config(
        lora=AS_FIELDS,
        batch_size=4,
        dtype="float32",
        learning_rate=1e-2,
        warmup_steps=0,
        ema_decay=0.5,
    )


@pytest.fixture(scope="module")
def params(run):
    return policies.parameters(run)


@pytest.fixture(scope="module")
def factors(params):
    """Returns factors a and b, of which neither is zero."""
    return random_like(lora.init(jax.random.key(0), params, RULES), 1, 0.3)


def merged(params, factors):
    """Returns the products by hand, in NumPy.

    They are per head for the language model, and one matrix for the image encoder.
    """
    flat, pairs = (
        {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
        for tree in (params, factors)
    )
    for path in [path for path in flat if f"{path}/a" in pairs]:
        a, b = pairs[f"{path}/a"], pairs[f"{path}/b"]
        scale = np.float32(2.0 if re.search("llm/.*_1/", path) else 1.5)  # 8 / 4, 3 / 2
        layers = flat[path].shape[0]
        product = a.reshape(layers, -1, 2) @ b.reshape(layers, 2, -1) if "img" in path else a @ b
        flat[path] = flat[path] + scale * product.reshape(flat[path].shape)
    return unflatten(flat)


def test_shapes_and_starting_values(params):
    made = flatten(lora.init(jax.random.key(0), params, RULES))
    shapes = {
        path: tuple(made[f"{path}/{part}"].shape for part in "ab")
        for path in (Q, KV, OUT, IMAGE_KEYS)
    }
    assert shapes == {
        Q: ((3, 4, 32, 2), (3, 4, 2, 8)),  # a head: 32 -> 2 -> 8
        KV: ((3, 2, 2, 32, 2), (3, 2, 2, 2, 8)),  # of keys and of values
        OUT: ((3, 4, 8, 4), (3, 4, 4, 24)),  # the expert's, at rank 4
        IMAGE_KEYS: ((2, 16, 2), (2, 2, 2, 8)),  # both heads together: 16 -> 2 -> 2 x 8
    }
    assert {path.split("/")[-2] for path in made if "img" in path} == {"kernel"} and len(
        made
    ) == 2 * (10 + 6)
    assert all(not np.any(leaf) for path, leaf in made.items() if path.endswith("/b"))
    assert np.std(made[f"{Q}/a"]) == pytest.approx(32**-0.5, rel=0.1)


def added(params, factors):
    """Returns the same by what exports use."""
    flat, pairs = flatten(params), flatten(factors)
    for path in [path for path in flat if f"{path}/a" in pairs]:
        flat[path] = lora.add(
            flat[path],
            pairs[f"{path}/a"],
            pairs[f"{path}/b"],
            rules=RULES,
            path=path,
            dtype=jnp.float32,
        )
    return unflatten(flat)


def test_products_by_hand(params, factors):
    for found, expected in zip(
        jax.tree.leaves(added(params, factors)),
        jax.tree.leaves(merged(params, factors)),
        strict=True,
    ):
        assert np.max(np.abs(found - expected)) <= 1e-6 * np.max(np.abs(expected))


@pytest.mark.parametrize(("scan", "remat"), [(True, "full"), (False, "none")])
def test_weights_merged_in_the_layers_equal_merged_weights(run, params, factors, scan, remat):
    model = Pi0(
        policy_config.model_config(run),
        ComputeOptions(dtype=jnp.float32, scan_layers=scan, remat=remat, lora=RULES),
    )
    batch = make_batch(0)
    tokens = dict(tokens=batch.observation.tokens, token_mask=batch.observation.token_mask)
    slot, images = next(iter(batch.observation.images.items()))
    observation = preprocess.Observation(
        images={slot: np.float32(images[:, :32, :32]) / 255}, image_masks=batch.observation.image_masks, **tokens,
        state=np.ones((4, 16), np.float32),
    )  # fmt: skip
    observation = jax.tree.map(jnp.asarray, observation)
    x_t, t = jnp.ones((4, 1, 10, 16)), jnp.full((4, 1), 0.3)

    @jax.jit
    def velocity(params, factors):
        return model.apply(
            lora.variables(params, factors), observation, x_t, t, method=Pi0.velocity
        )

    base, adapted, plain = (
        velocity(params, None),
        velocity(params, factors),
        velocity(added(params, factors), None),
    )
    assert np.max(np.abs(adapted - plain)) <= 1e-6 * np.max(np.abs(plain))
    assert np.max(np.abs(adapted - base)) > 1e-2 * np.max(np.abs(base))
    # to the bit: b is zero
    np.testing.assert_array_equal(
        velocity(params, lora.init(jax.random.key(0), params, RULES)), base
    )


def test_a_layers_products_are_computed_again_in_the_backward_pass(params, factors, capsys):
    """With remat "dots" no array of a weight's size is kept, but for those passed in.

    That option keeps other products.
    """
    from pi0_jax.models import layers

    linear = "PaliGemma/llm/layers/mlp_1"
    w, pair = (flatten(tree) for tree in (params, factors))
    arguments = (
        {"linear": w[f"{linear}/linear"][0]},
        {"linear": {part: pair[f"{linear}/linear/{part}"][0] for part in "ab"}},
    )

    def layer(x, inputs):
        weights = lora.merge_layer(*inputs, rules=RULES, path=linear.split("/"), dtype=jnp.float32)
        return jnp.sin(layers.dense(jnp.sin(x), weights["linear"]))

    print_saved_residuals(layers.rematerialise(layer, "dots"), jnp.ones((5, 40)), arguments)
    kept = [
        line for line in capsys.readouterr().out.splitlines() if "from the argument" not in line
    ]
    assert len(kept) == 1 and kept[0].startswith("f32[5,24]")


def test_factors_are_split_like_their_weights(run):
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    state = abstract_run_state(run, mesh)
    specs = {path: leaf.sharding.spec for path, leaf in flatten(state.factors).items()}
    assert specs[f"{Q}/a"] == PartitionSpec(None, "tensor", "fsdp", None) and specs[
        f"{Q}/b"
    ] == PartitionSpec(None, "tensor", None, None)
    assert specs[f"{IMAGE_KEYS}/b"] == PartitionSpec(None, None, "tensor", None)
    gate = "PaliGemma/llm/layers/mlp/gating_einsum"
    assert (specs[f"{gate}/a"], specs[f"{gate}/b"]) == (
        PartitionSpec(None, None, "fsdp", None),
        PartitionSpec(None, None, None, "tensor"),
    )
    assert all(
        len(spec) == len(leaf.shape)
        for spec, leaf in zip(specs.values(), jax.tree.leaves(state.factors), strict=False)
    )
    assert flatten(state.opt_state[1][0].mu)[f"{Q}/a"].sharding.spec == specs[f"{Q}/a"]


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_training_moves_factors_alone_and_resumes_to_the_bit(tmp_path, ema_decay):
    """A run with rank 2 on the expert is saved after 6 steps; restored, its seventh is the same.

    All else is frozen, and there are two devices. Without a decay no average is kept. In the
    checkpoint the factors stand in for it, for those who read only that.
    """
    rule = dict(path=r"layers/(attn/\w+_1/w|mlp_1)", rank=2, alpha=2.0)
    sizes = dict(
        action_dim=6,
        horizon=4,
        max_tokens=12,
        batch_size=4,
        dtype="bfloat16",
        learning_rate=3e-2,
        warmup_steps=0,
    )
    run = policies.run_config(
        lora=(rule,),
        frozen=(".",),
        frozen_dtype="bfloat16",
        scan_layers=True,
        remat="full",
        ema_decay=ema_decay,
        **sizes,
    )
    mesh, part = (
        sharding.make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2]),
        policy_config.trainable_part(run),
    )
    model, optimizer = make_model(run, mesh), make_optimizer(run)
    state = jit_init(model, optimizer, mesh, part)(jax.random.key(0))
    step = jit_train_step(model, optimizer, OPTIONS._replace(trainable=part), state)
    batch = sharding.place_batch(make_batch(1), mesh)
    before, losses = jax.device_get(state.params), []
    for _ in range(6):
        state, metrics = step(state, batch, np.uint32(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, jax.device_get(state.params))))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(state.factors))

    saved = RunCheckpoints(tmp_path, keep=1)
    saved.save(state, policies.description(run, {}, position=6), {})
    saved.wait()
    restored = saved.restore(6, abstract_state(model, optimizer, mesh, part))
    saved.close()
    average = flatten(state.factors if ema_decay == 0 else state.ema)
    assert (state.ema == {}) == (ema_decay == 0) and all(
        np.array_equal(leaf, average[path]) for path, leaf in arrays(tmp_path, 6, "ema").items()
    )
    assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [
        leaf.sharding for leaf in jax.tree.leaves(state)
    ]
    ours, theirs = (
        jax.device_get(step(start, batch, np.uint32(0))[0]) for start in (state, restored)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_and_a_conversion_give_merged_weights(run, params, factors, tmp_path, dtype):
    """The run has trained the projections and factors.

    Its base was kept in bfloat16, with the image encoder frozen.
    """
    run = policies.run_config(
        lora=AS_FIELDS[:1], frozen=("img/",), frozen_dtype="bfloat16", dtype=dtype
    )
    state = jax.jit(
        lambda params: state_from(
            params, jax.random.key(0), make_optimizer(run), policy_config.trainable_part(run)
        )
    )(params)
    average = random_like(state.ema, 3, 0.2)
    state = state._replace(ema=average, factors=random_like(state.factors, 4, 0.2))
    saved = RunCheckpoints(tmp_path / "run", keep=1)
    robots = {"arm": policies.robot("droid")}
    saved.save(state, policies.description(run, robots, position=1), {})
    saved.close()

    base, products = (jax.tree.map(np.float32, jax.device_get(tree)) for tree in averaged(state))
    assert set(flatten(products)) == {
        path for path in flatten(average) if path.endswith(("/a", "/b"))
    }
    expected = flatten(merged(base, products))
    opened = flatten(Policy.open(tmp_path / "run").params)
    assert opened.keys() == expected.keys()
    for path, leaf in expected.items():
        found = np.float32(opened[path])
        # rounded once
        np.testing.assert_allclose(
            found, leaf, rtol=1e-5 if dtype == "float32" else 2**-8, atol=1e-6
        )

    written = tmp_path / "merged"
    convert.run(str(tmp_path / "run"), str(written), "ours")
    for path, leaf in expected.items():
        np.testing.assert_allclose(
            np.float32(convert.open(str(written)).read(path)), leaf, rtol=1e-5, atol=1e-6
        )
    assert policy_config.trainable_part(
        Policy.open(written).config
    ) == trainable.EVERYTHING._replace(frozen_dtype="bfloat16")
    current = convert.open(str(tmp_path / "run"), convert.Options(weights="params"))
    now = merged(
        jax.tree.map(np.float32, jax.device_get(state.params)), jax.device_get(state.factors)
    )
    for path in (Q, OUT, IMAGE_KEYS):  # trained, adapted, frozen
        np.testing.assert_allclose(
            np.float32(current.layer(path, 1)),
            flatten(now)[path][1],
            rtol=1e-5,
            atol=1e-6,
        )
