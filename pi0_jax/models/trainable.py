"""Regular expressions over parameter paths say which parameters a run trains.

An expression means each path in which it is found.

    published tree  --frozen-->   values alone: no gradient, no moments, no moving average
                    --lora------> frozen too; the factors a and b train instead (models/lora.py)
                    --else------> trained

The tree of what is trained is one tree: the published paths, without frozen weights. The factors
stand under the weight that they adapt.

    trained     {... "mlp_1": {"linear": float32[L, F, D]}}
    frozen      {... "mlp_1": {}}, and so not there
    adapted     {... "mlp_1": {"linear": {"a": float32[L, F, R], "b": float32[L, R, D]}}}
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from pi0_jax.models import lora
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.patterns import mistakes as mistakes_of


class Trainable(NamedTuple):
    """Says which parameters are trained.

    Attributes:
        frozen: regular expressions; a weight is frozen if one is found in its path.
        frozen_dtype: the dtype in which weights that are not trained are kept.
        lora: the rules by which weights are adapted.
        averaged: whether a moving average of what is trained is kept.
    """

    frozen: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: tuple[LoraRule, ...] = ()
    averaged: bool = True

    def trains(self, path: str) -> bool:
        """Returns whether the weight of a published path is trained itself."""
        return (
            not any(re.search(pattern, path) for pattern in self.frozen)
            and lora.find(self.lora, path) is None
        )


EVERYTHING = Trainable()


def as_stored(params: Any, trainable: Trainable) -> dict[str, Any]:
    """Returns a published tree as a run keeps it: what is not trained is in `frozen_dtype`."""
    flat, dtype = flatten(params), jnp.dtype(trainable.frozen_dtype)
    return unflatten(
        {path: w if trainable.trains(path) else w.astype(dtype) for path, w in flat.items()}
    )


def trained_part(params: Any, factors: Any, trainable: Trainable) -> dict[str, Any]:
    """Returns the tree of what is trained, out of a published tree and LoRA's factors."""
    trained = {path: w for path, w in flatten(params).items() if trainable.trains(path)}
    return unflatten(trained | flatten(factors))


def with_trained(params: Any, trained: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Puts trained leaves back into a published tree; it inverts `trained_part`.

    Returns:
        The published tree with its trained leaves replaced, and LoRA's factors.
    """
    flat, leaves = flatten(params), flatten(trained)
    factors = {path: leaf for path, leaf in leaves.items() if path not in flat}
    return unflatten({path: leaves.get(path, leaf) for path, leaf in flat.items()}), unflatten(
        factors
    )


def mistakes(trainable: Trainable, shapes: Any) -> Iterator[str]:
    """Yields what is wrong with `frozen` and `lora`; every expression must have an effect.

    A mistake is an expression that is none or matches no parameter, a rank or alpha that does not
    fit its weights, or that nothing is left to train.

    Args:
        trainable: what is trained.
        shapes: the published tree's shapes.

    Yields:
        Texts that begin with the field's name.
    """
    flat = flatten(shapes)
    meaningless = [
        *unmatched("frozen", trainable.frozen, flat),
        *unmatched("lora", [rule.path for rule in trainable.lora], flat),
    ]
    yield from meaningless
    if meaningless:
        return
    for i, rule in enumerate(trainable.lora):
        mine = [path for path in flat if lora.find(trainable.lora, path) is rule]
        if not mine:
            yield f"lora[{i}].path {rule.path!r}: rules before it match all its parameters; expected one that is left"
        yield from _rank_mistakes(rule, mine, flat, f"lora[{i}]")
    if not trainable.lora and not any(trainable.trains(path) for path in flat):
        yield f"frozen is {trainable.frozen}: all {len(flat)} parameters match; expected one that is left to train"


def unmatched(field: str, patterns: Sequence[str], paths: Mapping[str, Any]) -> Iterator[str]:
    """Yields complaints about patterns that are no regular expressions, or match no parameter."""
    for i, (pattern, wrong) in enumerate(zip(patterns, mistakes_of(patterns), strict=True)):
        if wrong:
            yield f"{field}[{i}] {pattern[:100]!r}: {wrong}"
        elif not any(re.search(pattern, path) for path in paths):
            yield f"{field}[{i}] {pattern!r}: matches no parameter; expected one such as {next(iter(paths))}"


def _rank_mistakes(
    rule: LoraRule, matched: Sequence[str], flat: Mapping[str, Any], where: str
) -> Iterator[str]:
    """Yields a complaint about the first weight that the rule does not fit."""
    for path in matched:
        if not lora.adaptable(path):
            yield f"{where}.path {rule.path!r} matches {path}; expected matrices of the layers only"
            return
        largest = min(lora.fans(lora.product(path), flat[path].shape))
        if not 1 <= rule.rank <= largest:
            yield f"{where}.rank is {rule.rank}; expected 1 to {largest}, for {path} of shape {list(flat[path].shape)}"
            return
    if rule.alpha <= 0:
        yield f"{where}.alpha is {rule.alpha}; expected a positive number"
