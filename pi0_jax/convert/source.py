"""A source gives the parameters of some checkpoint under our names.

It reads leaf by leaf, or layer by layer, when they are asked for.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from pi0_jax.checkpoints.finite import check_finite
from pi0_jax.convert import rules, tree
from pi0_jax.convert.metadata import Metadata
from pi0_jax.convert.rules import SAME, Plan, parse_layout
from pi0_jax.errors import InputError
from pi0_jax.models.paths import unflatten
from pi0_jax.models.pi0 import Pi0Config

# The dtypes that a parameter may have.
_FLOATS = (
    np.dtype(np.float32),
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(np.float16),
    np.dtype(np.float64),
)


class Leaf(NamedTuple):
    """Holds the shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Protocol):
    """Gives the arrays of a foreign checkpoint, which are not read yet."""

    @property
    def infos(self) -> Mapping[str, Leaf]:
        """Returns shapes and dtypes, by name."""
        ...

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads a tensor, or its `entry` along the first axis."""
        ...


@dataclasses.dataclass(frozen=True)
class Source:
    """Is a checkpoint of any format, under our names; none of its arrays is read yet.

    Attributes:
        format: which format it was found to have.
        path: where it lies, for messages.
        leaves: shape and dtype of every parameter, by its path in the published tree; for a
            PaliGemma those of the backbone alone.
        sizes: the model's sizes, by the letters of convert/tree.py.
        fetch: reads a leaf, or one layer of it.
        metadata: robots, tokenizer and what else travels beside the weights.
        notes: what the user should know of this input.
        unused: tensors of the file that are no part of π0.
        differing_copies: reads tied tensors, and names those that are not equal.
    """

    format: str
    path: str
    leaves: Mapping[str, Leaf]
    sizes: Mapping[str, int]
    fetch: Callable[[str, int | None], np.ndarray]
    metadata: Metadata
    notes: tuple[str, ...] = ()
    unused: Mapping[str, Leaf] = dataclasses.field(default_factory=dict)
    differing_copies: Callable[[], list[str]] = list

    def read(self, path: str) -> np.ndarray:
        """Reads a leaf, whole."""
        return self.fetch(path, None)

    def layer(self, path: str, layer: int) -> np.ndarray:
        """Reads one layer of a stacked leaf."""
        return self.fetch(path, layer)

    def parts(self, path: str) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields a stacked leaf's layers with their numbers; any other leaf whole, with None."""
        if not is_stacked(path):
            yield None, self.read(path)
            return
        for layer in range(self.leaves[path].shape[0]):
            yield layer, self.layer(path, layer)

    def model_config(self) -> Pi0Config:
        """Returns the model of these sizes.

        formats.py has completed the sizes that no tensor shows.
        """
        horizon, max_tokens = self.metadata.horizon, self.metadata.max_tokens
        assert horizon is not None and max_tokens is not None, self.path
        return tree.model_config(self.sizes, horizon=horizon, max_tokens=max_tokens)

    def tree(self) -> dict[str, Any]:
        """Reads all of it at once, as the published tree."""
        return unflatten({path: self.read(path) for path in self.leaves})


def is_stacked(path: str) -> bool:
    """Returns whether a leaf has a layer axis."""
    return tree.AXES[path][0] in "IL"


def mapped(
    tensors: Tensors,
    table: list[rules.Rule],
    *,
    format: str,
    path: str,
    wanted: Mapping[str, str] = tree.AXES,
    given: tree.Sizes,
    metadata: Metadata,
    notes: tuple[str, ...] = (),
) -> Source:
    """Makes a source of a foreign checkpoint, through its rules.

    Args:
        tensors: the foreign arrays.
        table: the rules of the format.
        format: the format's name.
        path: names the checkpoint in messages.
        wanted: the leaves to fill, with their axes.
        given: sizes that the tensors do not show (letters of tree.py).
        metadata: what travels beside the weights.
        notes: what the user should know of this input.

    Raises:
        InputError: rules.plan raises it, or a tensor's dtype is wrong.
    """
    plan = rules.plan(
        table, {name: info.shape for name, info in tensors.infos.items()}, wanted, given, path
    )
    shapes = tree.expected_shapes(plan.sizes, wanted)
    leaves = {leaf: Leaf(shapes[leaf], _dtype(plan, tensors, leaf, path)) for leaf in wanted}

    def fetch(leaf: str, layer: int | None) -> np.ndarray:
        array = _fetch(plan, tensors, leaves[leaf], leaf, layer)
        check_finite(array, _where(path, leaf, layer))
        return array

    def differing() -> list[str]:
        return [
            name
            for name, leaf in plan.copies.items()
            if not _same_bits(tensors.read(name), _foreign(plan, tensors, leaf))
        ]

    if plan.unused:
        notes = (
            *notes,
            f"not part of π0, left out: {', '.join(plan.unused[:3])}"
            + (" ..." if len(plan.unused) > 3 else ""),
        )
    unused = {name: tensors.infos[name] for name in plan.unused}
    return Source(format, path, leaves, plan.sizes, fetch, metadata, notes, unused, differing)


def _dtype(plan: Plan, tensors: Tensors, leaf: str, path: str) -> np.dtype:
    """Returns the one dtype of the tensors that make a leaf."""
    names = [piece.name for piece in plan.pieces[leaf].values()]
    first = tensors.infos[names[0]].dtype
    if first not in _FLOATS:
        raise InputError(
            f"{path}: {names[0]}: expected one of the dtypes {', '.join(map(str, _FLOATS))}, found {first}"
        )
    for name in names:
        if (found := tensors.infos[name].dtype) != first:
            raise InputError(
                f"{path}: {names[0]} is {first}, {name} is {found}; expected one dtype for {leaf}"
            )
    return first


def _foreign(plan: Plan, tensors: Tensors, leaf: str) -> np.ndarray:
    """Reads the one tensor that makes a leaf."""
    (piece,) = plan.pieces[leaf].values()
    return tensors.read(piece.name)


def _fetch(plan: Plan, tensors: Tensors, info: Leaf, leaf: str, layer: int | None) -> np.ndarray:
    """Reads a leaf, or one layer of it, from the tensors that make it."""
    places = plan.pieces[leaf]
    # One tensor holds all of the leaf.
    if () in places:
        piece = places[()]
        if piece.layout == SAME:
            return tensors.read(piece.name, layer)
        whole = parse_layout(piece.layout).forward(tensors.read(piece.name), plan.sizes)
        return whole if layer is None else whole[layer]
    result = np.empty(info.shape if layer is None else info.shape[1:], info.dtype)
    for place, piece in places.items():
        if layer is None or place[0] == layer:
            result[place if layer is None else place[1:]] = parse_layout(piece.layout).forward(
                tensors.read(piece.name), plan.sizes
            )
    return result


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays are equal to the bit."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(bits(a), bits(b))


def _where(path: str, leaf: str, layer: int | None) -> str:
    """Names a leaf, or one layer of it, in messages."""
    return f"{path}: {leaf}" if layer is None else f"{path}: {leaf} layer {layer}"


def bits(x: np.ndarray) -> np.ndarray:
    """Returns the array's bytes as unsigned integers.

    So equal means equal to the bit, also for NaN and signed zero.
    """
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def cast(source: Source, dtype: np.dtype | None) -> Source:
    """Returns the source in another dtype, rounded to nearest.

    Reading raises InputError if a number is too large for the dtype.

    Args:
        source: the source.
        dtype: the dtype; None keeps each leaf's own.
    """
    if dtype is None:
        return source

    def fetch(leaf: str, layer: int | None) -> np.ndarray:
        array = source.fetch(leaf, layer).astype(dtype, copy=False)
        check_finite(array, _where(source.path, leaf, layer))
        return array

    leaves = {path: Leaf(leaf.shape, dtype) for path, leaf in source.leaves.items()}
    return dataclasses.replace(source, leaves=leaves, fetch=fetch)
