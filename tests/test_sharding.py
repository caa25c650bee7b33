"""Meshes of eight virtual devices, and a rule for every parameter."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pi0_jax import sharding
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS, Pi0


def parameter_shapes(variant: str):
    return jax.eval_shape(
        lambda: Pi0(VARIANTS[variant]).init(jax.random.key(0), method=Pi0.declare)
    )["params"]


def bytes_per_device(shapes, shardings) -> int:
    return sum(
        math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, where in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 4, -1), (1, 4, 2)),
        ((1, 8, 1), (1, 8, 1)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_mesh_sizes(sizes, shape):
    mesh = sharding.make_mesh(**dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))


def test_a_mesh_over_given_devices():
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    assert mesh.devices.tolist() == [[[jax.devices()[0]]]]


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (-2, 1, 1)])
def test_a_mesh_size_is_positive_or_once_minus_one(sizes):
    with pytest.raises(InputError, match="^mesh data=.* fsdp=.* tensor=.*: .*at most one"):
        sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])


@pytest.mark.parametrize("sizes", [(3, -1, 1), (2, 2, 1), (16, 1, 1)])
def test_a_mesh_must_fit_the_devices(sizes):
    with pytest.raises(InputError, match=r"does not fit 8 devices$"):
        sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_rule_of_its_rank(variant):
    for key, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(variant)):
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        axes = sharding.logical_axes(path)
        vector = axes == () and path.endswith(("/scale", "/bias"))
        assert vector or len(axes) == len(leaf.shape), (path, axes, leaf.shape)
        assert set(axes) <= {*sharding.PARAMETER_MESH, None}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2)])
def test_shards_of_every_parameter_are_equal(variant, sizes):
    """shard_shape raises where a mesh axis does not divide an array's axis."""
    shapes = parameter_shapes(variant)
    shardings = sharding.parameter_shardings(
        shapes, sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    )
    for leaf, where in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        assert len(where.shard_shape(leaf.shape)) == len(leaf.shape)


@pytest.mark.parametrize(
    ("sizes", "share"), [((8, 1, 1), 1), ((1, 8, 1), 1 / 8), ((1, 2, 4), 1 / 8), ((2, 2, 2), 1 / 4)]
)
def test_the_full_models_parameters_are_split_over_fsdp_and_tensor(sizes, share):
    """A device holds little more than its share, because what stays whole is small.

    Kv heads are few, so tensor does not split them.
    """
    shapes = parameter_shapes("pi0")
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    shardings = sharding.parameter_shardings(
        shapes, sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    )
    assert share <= bytes_per_device(shapes, shardings) / total <= share + 0.01


def test_the_rules_of_a_few_parameters_of_the_full_model():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    specs = jax.tree.map(
        lambda where: where.spec, sharding.parameter_shardings(parameter_shapes("pi0"), mesh)
    )
    llm = specs["PaliGemma"]["llm"]
    assert llm["embedder"]["input_embedding"] == PartitionSpec("tensor", "fsdp")
    assert llm["layers"]["attn"]["q_einsum"]["w"] == PartitionSpec(None, "tensor", "fsdp", None)
    assert llm["layers"]["mlp_1"]["linear"] == PartitionSpec(None, "tensor", "fsdp")
    assert llm["final_norm"]["scale"] == PartitionSpec()
    assert specs["action_out_proj"]["kernel"] == PartitionSpec("fsdp", None)


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    shapes = {"action_out_proj": {"kernel": jax.ShapeDtypeStruct((6, 5), jnp.float32)}}
    assert sharding.parameter_shardings(shapes, mesh)["action_out_proj"][
        "kernel"
    ].spec == PartitionSpec(None, None)


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no rule of .* covers .*'head/new_kernel'"):
        sharding.logical_axes("head/new_kernel")


@pytest.mark.parametrize(
    ("sizes", "rows"), [((8, 1, 1), 1), ((2, 4, 1), 1), ((2, 2, 2), 2), ((1, 1, 8), 8)]
)
def test_place_batch_splits_rows_over_data_and_fsdp(sizes, rows):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    batch = {
        "state": np.arange(24, dtype=np.float32).reshape(8, 3),
        "rows": np.arange(8, dtype=np.int32),
    }
    placed = sharding.place_batch(batch, mesh)
    for name, array in batch.items():
        np.testing.assert_array_equal(placed[name], array)
        assert placed[name].dtype == array.dtype
        for shard in placed[name].addressable_shards:
            assert shard.data.shape == (rows, *array.shape[1:])


def test_constrain_splits_rows_and_heads():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    constrain = sharding.constrain_on(mesh)
    x = jnp.zeros((8, 3, 4, 5))
    split = jax.jit(lambda x: constrain(x, ("batch", "tokens", "heads", None)))(x)
    assert split.sharding.shard_shape(x.shape) == (2, 3, 2, 5)


def test_constrain_leaves_axes_that_do_not_divide_to_the_compiler():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    constrain = sharding.constrain_on(mesh)
    x = jnp.arange(9.0).reshape(3, 3)
    # outside jit, JAX refuses uneven shards
    np.testing.assert_array_equal(constrain(x, ("batch", "heads")), x)
    np.testing.assert_array_equal(jax.jit(lambda x: constrain(x, ("batch", "heads")))(x), x)
    with pytest.raises(KeyError, match="bach"):
        constrain(x, ("bach", None))


def test_gather_brings_one_layers_weights_together_in_the_compute_dtype():
    """Weights are gathered over fsdp and not over tensor; vectors are on every device as they are.

    Gradients go back to where the weights are held.
    """
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    stacked = {
        "mlp": {
            "gating_einsum": jnp.arange(3 * 2 * 8 * 16, dtype=jnp.float32).reshape(3, 2, 8, 16)
        },
        "pre_ffw_norm": {"scale": jnp.ones((3, 8))},
    }
    path = ("PaliGemma", "llm", "layers")
    held = sharding.parameter_shardings({"PaliGemma": {"llm": {"layers": stacked}}}, mesh)[
        "PaliGemma"
    ]["llm"]["layers"]
    stacked = jax.device_put(stacked, held)

    def layer(params):
        return sharding.gather_on(mesh)(jax.tree.map(lambda w: w[1], params), path, jnp.bfloat16)

    used = jax.jit(layer)(stacked)
    gating = used["mlp"]["gating_einsum"]
    assert gating.sharding.shard_shape(gating.shape) == (2, 8, 8) and gating.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gating, stacked["mlp"]["gating_einsum"][1].astype(jnp.bfloat16))
    assert used["pre_ffw_norm"]["scale"].dtype == jnp.float32

    gradient = jax.jit(
        jax.grad(lambda p: jnp.sum(3.0 * layer(p)["mlp"]["gating_einsum"]).astype(jnp.float32))
    )(stacked)
    gating = gradient["mlp"]["gating_einsum"]
    assert gating.dtype == jnp.float32 and gating.sharding.shard_shape(gating.shape) == (3, 2, 2, 8)
    np.testing.assert_array_equal(
        gating, 3.0 * (np.arange(3) == 1)[:, None, None, None] * np.ones((3, 2, 8, 16))
    )


def test_without_fsdp_weights_are_used_where_they_are():
    gather = sharding.gather_on(sharding.make_mesh(data=8, fsdp=1, tensor=1))
    params = {"kernel": jnp.ones((4, 6))}
    assert gather(params, ("state_proj",), jnp.bfloat16)["kernel"] is params["kernel"]
