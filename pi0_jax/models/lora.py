"""LoRA adds a product of two narrow matrices to a fixed weight (Hu et al. 2021, section 4.1).

    w + (alpha / rank) * a b           a: random, b: zeros, so training starts from the given model

The leaves a and b make a second tree, under the path of the weight that they adapt:

    params  {... {"mlp": {"linear": float32[L, F, D]}}}
    lora    {... {"mlp": {"linear": {"a": float32[L, F, R], "b": float32[L, R, D]}}}}

Axes: L layers, R rank; c keys and values, or gate and up; others as in gemma.py and siglip.py.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from pi0_jax.models import paths

LORA = "lora"  # the collection of the variables that a model is applied to, beside "params"

# The weights that can be adapted -> how a and b make their product; first match wins. In the
# language model every head has its own pair, and so have keys, values, gate and up, as in the
# published code. The image encoder, which that code does not adapt, has one pair a weight.
PRODUCTS: tuple[tuple[str, str], ...] = (
    (r"llm/layers/attn/q_einsum(_\d+)?/w$", "LNDR,LNRH->LNDH"),
    (r"llm/layers/attn/kv_einsum(_\d+)?/w$", "LcKDR,LcKRH->LcKDH"),
    (r"llm/layers/attn/attn_vec_einsum(_\d+)?/w$", "LNHR,LNRD->LNHD"),
    (r"llm/layers/mlp(_\d+)?/gating_einsum$", "LcDR,LcRF->LcDF"),
    (r"llm/layers/mlp(_\d+)?/linear$", "LFR,LRD->LFD"),
    (r"encoderblock/MultiHeadDotProductAttention_0/(query|key|value)/kernel$", "LDR,LRNH->LDNH"),
    (r"encoderblock/MultiHeadDotProductAttention_0/out/kernel$", "LNHR,LRD->LNHD"),
    (r"encoderblock/MlpBlock_0/Dense_0/kernel$", "LDR,LRF->LDF"),
    (r"encoderblock/MlpBlock_0/Dense_1/kernel$", "LFR,LRD->LFD"),
)


@dataclasses.dataclass(frozen=True)
class LoraRule:
    """Says which weights are adapted, and how."""

    path: str  # a regular expression: the weights in whose path it is found
    rank: int
    alpha: float


def find(rules: Sequence[LoraRule], path: str) -> LoraRule | None:
    """Returns the first rule that matches a weight's path; None where the weight is not adapted."""
    return next((rule for rule in rules if re.search(rule.path, path)), None)


def adaptable(path: str) -> bool:
    """Says whether the weight of a published path can be adapted."""
    return any(re.search(pattern, path) for pattern, _ in PRODUCTS)


def product(path: str) -> str:
    """Returns the einsum subscripts that make a weight's product of a and b.

    Raises:
        ValueError: the weight cannot be adapted.
    """
    for pattern, subscripts in PRODUCTS:
        if re.search(pattern, path):
            return subscripts
    raise ValueError(f"no rule of PRODUCTS covers the parameter {path!r}")


def factor_shapes(
    subscripts: str, shape: tuple[int, ...], rank: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of a and b for a weight of this shape."""
    a, b, w = re.split("->|,", subscripts)
    sizes = dict(zip(w, shape, strict=True)) | {"R": rank}
    return tuple(sizes[axis] for axis in a), tuple(sizes[axis] for axis in b)


def fans(subscripts: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Counts inputs and outputs of one pair: the axes that a and b do not share."""
    a, b, w = re.split("->|,", subscripts)
    sizes = dict(zip(w, shape, strict=True))
    return math.prod(sizes[axis] for axis in a if axis not in b), math.prod(
        sizes[axis] for axis in b if axis not in a
    )


def variables(params: Any, factors: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what a model is applied to: a published tree and, where there is one, LoRA's."""
    return {"params": params, LORA: factors} if factors else {"params": params}


def init(key: Key[Array, ""], params: Any, rules: Sequence[LoraRule]) -> dict[str, Any]:
    """Draws LoRA's factors: a is normal with variance 1 / (number of inputs), b is zero.

    So training starts from the given model.

    Args:
        key: a key of jax.random.
        params: the published tree, as arrays or as their shapes.
        rules: which weights are adapted.

    Returns:
        The tree of factors, float32; {} without rules.
    """
    factors = {}
    for path, leaf in sorted(paths.flatten(params).items()):
        rule = find(rules, path)
        if rule is None:
            continue
        subscripts = product(path)
        a, b = factor_shapes(subscripts, leaf.shape, rule.rank)
        key, mine = jax.random.split(key)
        factors[f"{path}/a"] = jax.random.normal(mine, a) * fans(subscripts, leaf.shape)[0] ** -0.5
        factors[f"{path}/b"] = jnp.zeros(b)
    return paths.unflatten(factors)


def add(
    w: Float[Array, "..."],
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    *,
    rules: Sequence[LoraRule],
    path: str,
    dtype: Any,
) -> Float[Array, "..."]:
    """Adds the product of a and b to a weight, in float32, and rounds once to `dtype`.

    Args:
        w: a stack of layers' weights, or a part of one.
        a: its factor of the inputs.
        b: its factor of the outputs.
        rules: of which the first that matches gives alpha and rank.
        path: the weight's published path.
        dtype: of the sum.
    """
    rule = find(rules, path)
    assert rule is not None, path  # it has factors
    update = jnp.einsum(product(path), a, b, preferred_element_type=jnp.float32)
    return (w.astype(jnp.float32) + (rule.alpha / rule.rank) * update).astype(dtype)


def merge_layer(
    params: Any,
    factors: Mapping[str, Any],
    *,
    rules: Sequence[LoraRule],
    path: Sequence[str],
    dtype: Any,
) -> Any:
    """Adds LoRA's products to one layer's parameters.

    This is done before the parameters are gathered: each device adds to its own part of a weight,
    and the gradient comes back to that part, as without LoRA.

    Args:
        params: the layer's parameters, without the layer axis.
        factors: LoRA's factors of some of them, or {}.
        rules: which weights are adapted.
        path: where the layers are in the model.
        dtype: of the sums.

    Returns:
        The parameters, with the sums in place of the adapted weights.
    """
    if not factors:
        return params
    flat, pairs = paths.flatten(params), paths.flatten(factors)
    for name in (name.removesuffix("/a") for name in pairs if name.endswith("/a")):
        # As stacks of one layer: products with a batch axis are computed again in the backward pass
        # under remat "dots", not kept.
        stacks = (x[None] for x in (flat[name], pairs[f"{name}/a"], pairs[f"{name}/b"]))
        flat[name] = add(*stacks, rules=rules, path="/".join((*path, name)), dtype=dtype)[0]
    return paths.unflatten(flat)
