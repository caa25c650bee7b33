"""Devices form a mesh of data x fsdp x tensor, and two tables say who holds what.

    parameter path --PARAMETER_AXES--> logical axes --PARAMETER_MESH--> mesh axes
    activation     --(named in models/)-> logical axes --ACTIVATION_MESH--> mesh axes

The batch is split over data and fsdp; parameters, optimizer state and EMA over fsdp and tensor.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pi0_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Parameter path -> one logical axis per array axis. The first match wins. A path that nothing
# matches is an error.
# fmt: off
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"img/embedding/kernel$", (None, None, None, "embed")),
    (r"img/pos_embedding$", (None, None, "embed")),
    (r"MultiHeadDotProductAttention_0/(query|key|value)/kernel$", ("layers", "embed", "heads", None)),
    (r"MultiHeadDotProductAttention_0/out/kernel$", ("layers", "heads", None, "embed")),
    (r"MlpBlock_0/Dense_0/kernel$", ("layers", "embed", "mlp")),
    (r"MlpBlock_0/Dense_1/kernel$", ("layers", "mlp", "embed")),
    (r"img/head/kernel$", ("embed", None)),
    (r"embedder/input_embedding$", ("vocab", "embed")),
    (r"attn/q_einsum(_\d+)?/w$", ("layers", "heads", "embed", None)),
    (r"attn/kv_einsum(_\d+)?/w$", ("layers", None, None, "embed", None)),
    (r"attn/attn_vec_einsum(_\d+)?/w$", ("layers", "heads", None, "embed")),
    (r"mlp(_\d+)?/gating_einsum$", ("layers", None, "embed", "mlp")),
    (r"mlp(_\d+)?/linear$", ("layers", "mlp", "embed")),
    (r"llm/layers/\w+_norm_\d+/Dense_0/kernel$", ("layers", "embed", None)),
    (r"llm/final_norm_\d+/Dense_0/kernel$", ("embed", None)),
    # LoRA's factors of these weights (models/lora.py); their rank is too small to split.
    (r"MultiHeadDotProductAttention_0/(query|key|value)/kernel/a$", ("layers", "embed", None)),
    (r"MultiHeadDotProductAttention_0/(query|key|value)/kernel/b$", ("layers", None, "heads", None)),
    (r"MultiHeadDotProductAttention_0/out/kernel/a$", ("layers", "heads", None, None)),
    (r"MultiHeadDotProductAttention_0/out/kernel/b$", ("layers", None, "embed")),
    (r"MlpBlock_0/Dense_0/kernel/a$", ("layers", "embed", None)),
    (r"MlpBlock_0/Dense_0/kernel/b$", ("layers", None, "mlp")),
    (r"MlpBlock_0/Dense_1/kernel/a$", ("layers", "mlp", None)),
    (r"MlpBlock_0/Dense_1/kernel/b$", ("layers", None, "embed")),
    (r"attn/q_einsum(_\d+)?/w/a$", ("layers", "heads", "embed", None)),
    (r"attn/q_einsum(_\d+)?/w/b$", ("layers", "heads", None, None)),
    (r"attn/kv_einsum(_\d+)?/w/a$", ("layers", None, None, "embed", None)),
    (r"attn/kv_einsum(_\d+)?/w/b$", ("layers", None, None, None, None)),
    (r"attn/attn_vec_einsum(_\d+)?/w/a$", ("layers", "heads", None, None)),
    (r"attn/attn_vec_einsum(_\d+)?/w/b$", ("layers", "heads", None, "embed")),
    (r"mlp(_\d+)?/gating_einsum/a$", ("layers", None, "embed", None)),
    (r"mlp(_\d+)?/gating_einsum/b$", ("layers", None, None, "mlp")),
    (r"mlp(_\d+)?/linear/a$", ("layers", "mlp", None)),
    (r"mlp(_\d+)?/linear/b$", ("layers", None, "embed")),
    (r"(state_proj|action_in_proj|(action_)?time_mlp_(in|out))/kernel$", (None, "embed")),
    (r"action_out_proj/kernel$", ("embed", None)),
    (r"embodiment_tokens/embedding$", (None, "embed")),
    (r"(scale|bias)$", ()),  # vectors: whole on every device
)
# fmt: on

PARAMETER_MESH: Mapping[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}

ACTIVATION_MESH: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "tokens": None,
    "patches": None,
    "embed": None,
    "vision_embed": None,
    "heads": "tensor",
    "mlp": "tensor",
    # Rows of the embedding table as they are read, before they go to the devices that hold their
    # batch rows.
    "lookup": "data",
    "table_columns": "fsdp",
}


def make_mesh(
    *, data: int, fsdp: int, tensor: int, devices: list[jax.Device] | None = None
) -> Mesh:
    """Makes a mesh over all devices.

    Args:
        data: the size of the data axis. One of the sizes may be -1: it takes what the others leave.
        fsdp: the size of the fsdp axis.
        tensor: the size of the tensor axis.
        devices: the devices; None takes all.

    Raises:
        InputError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, asked = [data, fsdp, tensor], f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"{asked}: sizes must be positive, at most one of them -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(f"{asked} does not fit {len(devices)} devices")
    try:
        return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    except NotImplementedError as error:  # JAX does not cut an axis of a torus
        whole = f"sides of the slice of {len(devices)} {devices[0].device_kind}"
        expected = f"expected each size to be a product of {whole}; found {error}"
        raise InputError(f"mesh {dict(zip(MESH_AXES, sizes, strict=True))}: {expected}") from error


def logical_axes(path: str) -> tuple[str | None, ...]:
    """Returns a parameter's logical axes; raises ValueError if no rule covers its path."""
    for pattern, axes in PARAMETER_AXES:
        if re.search(pattern, path):
            return axes
    raise ValueError(f"no rule of PARAMETER_AXES covers the parameter {path!r}")


def parameter_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Returns a tree of shardings for a tree of parameter shapes.

    An axis that its mesh axis does not divide stays whole.
    """
    return jax.tree_util.tree_map_with_path(
        lambda key, leaf: NamedSharding(mesh, _parameter_spec(_path(key), leaf.shape, mesh)), shapes
    )


def _path(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the mesh axes over which a parameter's axes are split."""
    axes = logical_axes(path)
    # A single layer has no layer axis.
    if axes[:1] == ("layers",):
        axes = axes[len(axes) - len(shape) :]
    places = [PARAMETER_MESH[name] if name else None for name in axes]
    sized = zip(places, shape, strict=False)
    return PartitionSpec(
        *(place if place and size % mesh.shape[place] == 0 else None for place, size in sized)
    )


def placed(shapes: Any, shardings: Any) -> Any:
    """Returns the same shapes and dtypes as ShapeDtypeStructs that say where they are held."""

    def held(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(held, shapes, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Makes global arrays, split over the batch axes, from this process's rows.

    Args:
        batch: a tree of host arrays with this process's rows.
        mesh: the devices.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def constrain_on(mesh: Mesh) -> Callable[[jax.Array, tuple[str | None, ...]], jax.Array]:
    """Returns the `constrain` that models call on activations.

    An axis that its mesh axes do not divide is left to the compiler.
    """

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        parts = []
        for size, name in zip(x.shape, axes, strict=True):
            where = ACTIVATION_MESH[name] if name else None
            split = (where,) if isinstance(where, str) else where or ()
            even = size % math.prod(mesh.shape[axis] for axis in split) == 0
            parts.append(where if even else PartitionSpec.UNCONSTRAINED)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*parts)))

    return constrain


def gather_on(mesh: Mesh) -> Callable[[Any, tuple[str, ...], Any], Any]:
    """Returns the `gather` that models call on weights where they are used, such as one layer's.

    Each weight is cast to the compute dtype on the devices that hold it, so that the narrower type
    travels, and gathered over fsdp. Its gradient goes back the same way: it is summed over the
    devices' rows in the compute dtype, and each device keeps its part. Without this the compiler
    might split activations instead, and sum those.
    """

    def gather(params: Any, path: tuple[str, ...], dtype: Any) -> Any:
        prefix = "/".join(path)

        def one(key: Any, w: jax.Array) -> jax.Array:
            spec = _parameter_spec(f"{prefix}/{_path(key)}", w.shape, mesh)
            if "fsdp" not in spec or mesh.shape["fsdp"] == 1:
                return w
            whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
            return _gather(w, dtype, NamedSharding(mesh, spec), NamedSharding(mesh, whole))

        return jax.tree_util.tree_map_with_path(one, params)

    return gather


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(w: jax.Array, dtype: Any, split: NamedSharding, whole: NamedSharding) -> jax.Array:
    """Casts a weight where it is held, then gathers it."""
    return jax.lax.with_sharding_constraint(
        jax.lax.with_sharding_constraint(w.astype(dtype), split), whole
    )


def _gather_forward(
    w: jax.Array, dtype: Any, split: NamedSharding, whole: NamedSharding
) -> tuple[jax.Array, jax.Array]:
    """Keeps an empty array of the weight's dtype for the way back."""
    return _gather(w, dtype, split, whole), jnp.zeros((0,), w.dtype)


def _gather_backward(
    dtype: Any, split: NamedSharding, whole: NamedSharding, like: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    """Splits the gradient as the weight is split, and casts it to the weight's dtype."""
    return (jax.lax.with_sharding_constraint(gradient, split).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)
