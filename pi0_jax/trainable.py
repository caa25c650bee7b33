"""Which parameters a run trains, by regular expressions over parameter paths; a path in which one is found is meant.

    published tree  --frozen-->   values alone: no gradient, no moments, no moving average
                    --lora------> frozen too; the factors a and b train instead (models/lora.py)
                    --else------> trained

The tree of what is trained is one tree: the published paths, without frozen weights; the factors stand under the weight that they adapt.

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
from pi0_jax.patterns import mistakes as mistakes_of


class Trainable(NamedTuple):
    frozen: tuple[str, ...] = ()
    frozen_dtype: Literal["float32", "bfloat16"] = (
        "float32"  # in which weights that are not trained are kept
    )
    lora: tuple[LoraRule, ...] = ()
    averaged: bool = True  # whether a moving average of what is trained is kept

    def trains(self, path: str) -> bool:
        """Whether the weight of a published path is trained itself."""
        return (
            not any(re.search(pattern, path) for pattern in self.frozen)
            and lora.find(self.lora, path) is None
        )


EVERYTHING = Trainable()


def kept(params: Any, trainable: Trainable) -> dict[str, Any]:
    """A published tree as a run keeps it: what is not trained in `frozen_dtype`."""
    flat, dtype = flatten(params), jnp.dtype(trainable.frozen_dtype)
    return unflatten(
        {path: w if trainable.trains(path) else w.astype(dtype) for path, w in flat.items()}
    )


def select(params: Any, factors: Any, trainable: Trainable) -> dict[str, Any]:
    """The tree of what is trained, out of a published tree and LoRA's factors."""
    trained = {path: w for path, w in flatten(params).items() if trainable.trains(path)}
    return unflatten(trained | flatten(factors))


def put(params: Any, trained: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The published tree with its trained leaves replaced, and the factors: `select` undone."""
    flat, leaves = flatten(params), flatten(trained)
    factors = {path: leaf for path, leaf in leaves.items() if path not in flat}
    return unflatten({path: leaves.get(path, leaf) for path, leaf in flat.items()}), unflatten(
        factors
    )


def mistakes(trainable: Trainable, shapes: Any) -> Iterator[str]:
    """What is wrong with `frozen` and `lora`: every expression must mean something. `shapes`: the published tree's.

    A mistake is an expression that is none or matches no parameter, a rank or alpha that fits no such weight, or nothing that is left
    to train. Each begins with the field's name.
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
    """The patterns that are no regular expressions, or are found in none of the parameters' paths."""
    for i, (pattern, wrong) in enumerate(zip(patterns, mistakes_of(patterns), strict=True)):
        if wrong:
            yield f"{field}[{i}] {pattern[:100]!r}: {wrong}"
        elif not any(re.search(pattern, path) for path in paths):
            yield f"{field}[{i}] {pattern!r}: matches no parameter; expected one such as {next(iter(paths))}"


def _rank_mistakes(
    rule: LoraRule, matched: Sequence[str], flat: Mapping[str, Any], where: str
) -> Iterator[str]:
    """The first weight that the rule does not fit."""
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
