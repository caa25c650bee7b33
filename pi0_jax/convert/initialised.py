"""Leaves that a PaliGemma does not hold are newly initialised."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from pi0_jax.convert import tree
from pi0_jax.convert.metadata import PUBLISHED_HORIZON, PUBLISHED_MAX_TOKENS
from pi0_jax.convert.source import Leaf, Source
from pi0_jax.models.paths import flatten
from pi0_jax.models.pi0 import VARIANTS, Pi0

_EXPERT = "EGA"  # the sizes that the backbone does not show


def with_fresh_leaves(source: Source, given: tree.Sizes, seed: int) -> Source:
    """Completes a source to all of π0.

    What it lacks is initialised as for a training from scratch, in float32.

    Args:
        source: the opened checkpoint.
        given: sizes of the action expert; the published model's stand in for those that are
            missing.
        seed: keys the random numbers.
    """
    published = tree.sizes_of_config(VARIANTS["pi0"])
    expert = {letter: given[letter] if letter in given else published[letter] for letter in _EXPERT}
    sizes = {**source.sizes, **expert, "T": 2 * expert["E"]}
    shapes = tree.expected_shapes(sizes)
    missing = [path for path in tree.AXES if path not in source.leaves]
    model = Pi0(
        tree.model_config(sizes, horizon=PUBLISHED_HORIZON, max_tokens=PUBLISHED_MAX_TOKENS)
    )

    @jax.jit
    def initialise(key: jax.Array) -> Mapping[str, jax.Array]:
        flat = flatten(model.init(key, method=Pi0.declare)["params"])
        return {path: flat[path] for path in missing}  # the compiler leaves out the rest

    held: list[Mapping[str, np.ndarray]] = []

    def fetch(path: str, layer: int | None) -> np.ndarray:
        if path in source.leaves:
            return source.fetch(path, layer)
        if not held:
            held.append(jax.tree.map(np.asarray, initialise(jax.random.key(seed))))
        return held[0][path] if layer is None else held[0][path][layer]

    leaves = {
        path: source.leaves[path]
        if path in source.leaves
        else Leaf(shapes[path], np.dtype(np.float32))
        for path in tree.AXES
    }
    note = f"not in the input, freshly initialised with seed {seed}: {', '.join(missing)}"
    return dataclasses.replace(
        source, leaves=leaves, sizes=sizes, fetch=fetch, notes=(*source.notes, note)
    )
