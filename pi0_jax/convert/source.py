"""A source gives the parameters of some checkpoint under our names.

It reads leaf by leaf, or layer by layer, when they are asked for.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

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
_FLOATS = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)))


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """Is an array that is read when it is asked for. Two are equal in shape and dtype alone.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        read: reads all of it for None, or the entry of this number along the first axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray] = dataclasses.field(compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Returns the number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_memory(array: np.ndarray) -> LazyArray:
    """Returns an array that is there already."""
    return LazyArray(array.shape, array.dtype, lambda i: array if i is None else array[i])


_NOTHING = Metadata()
Tensors: TypeAlias = Mapping[str, LazyArray]  # of a foreign checkpoint, by name


@dataclasses.dataclass(frozen=True)
class Source:
    """Is a checkpoint of any format, under our names; none of its arrays is read yet.

    Attributes:
        format: which format it was found to have.
        path: where it lies, for messages.
        leaves: every parameter, by its path in the published tree; for a PaliGemma those of the
            backbone alone.
        sizes: the model's sizes, by the letters of convert/tree.py.
        metadata: robots, tokenizer and what else travels beside the weights.
        notes: what the user should know of this input.
        unused: tensors of the file that are no part of π0.
        differing_copies: reads tied tensors, and names those that are not equal.
    """

    format: str
    path: str
    leaves: Mapping[str, LazyArray]
    sizes: Mapping[str, int]
    metadata: Metadata
    notes: tuple[str, ...] = ()
    unused: Tensors = dataclasses.field(default_factory=dict)
    differing_copies: Callable[[], list[str]] = list

    def read(self, path: str) -> np.ndarray:
        """Reads a leaf, whole."""
        return self.leaves[path].read(None)

    def layer(self, path: str, layer: int) -> np.ndarray:
        """Reads one layer of a stacked leaf."""
        return self.leaves[path].read(layer)

    def parts(self, path: str) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields a stacked leaf's layers with their numbers; any other leaf whole, with None."""
        leaf = self.leaves[path]
        for layer in range(leaf.shape[0]) if is_stacked(path) else (None,):
            yield layer, leaf.read(layer)

    def model_config(self) -> Pi0Config:
        """Returns the model of these sizes.

        formats.py has completed the sizes that no tensor shows.
        """
        horizon, max_tokens = self.metadata.horizon, self.metadata.max_tokens
        assert horizon is not None and max_tokens is not None, self.path
        return tree.model_config(self.sizes, horizon=horizon, max_tokens=max_tokens)

    def tree(self) -> dict[str, Any]:
        """Reads all arrays into memory at once, as the published tree."""
        return unflatten({path: self.read(path) for path in self.leaves})


def is_stacked(path: str) -> bool:
    """Returns whether a leaf has a layer axis."""
    return tree.AXES[path][0] in "IL"


# ---- foreign to ours


def mapped(
    tensors: Tensors,
    table: list[rules.Rule],
    *,
    format: str,
    path: str,
    given: tree.Sizes,
    metadata: Metadata = _NOTHING,
    wanted: Mapping[str, str] | None = None,
) -> Source:
    """Makes a source of a foreign checkpoint, through its rules.

    Args:
        tensors: the foreign arrays.
        table: the rules of the format.
        format: the format's name.
        path: names the checkpoint in messages.
        given: sizes that the tensors do not show (letters of tree.py).
        metadata: what travels beside the weights.
        wanted: the leaves to fill, with their axes; None: those of π0 or π0.5, as the names say.

    Raises:
        InputError: rules.plan raises it, or a tensor's dtype is wrong.
    """
    wanted = tree.axes_of(tensors, path) if wanted is None else wanted
    found = {name: tensor.shape for name, tensor in tensors.items()}
    plan = rules.plan(table, found, wanted, given, path)
    shapes = tree.expected_shapes(plan.sizes, wanted)
    leaves = {leaf: _joined(plan, tensors, leaf, shapes[leaf], path) for leaf in wanted}

    def differing() -> list[str]:
        weights = {
            copy: next(iter(plan.pieces[leaf].values())).name for copy, leaf in plan.copies.items()
        }
        return [
            copy
            for copy, weight in weights.items()
            if not same_bits(tensors[copy].read(None), tensors[weight].read(None))
        ]

    more = " ..." if len(plan.unused) > 3 else ""
    note = f"not part of π0, left out: {', '.join(plan.unused[:3])}{more}"
    notes = (note,) if plan.unused else ()
    unused = {name: tensors[name] for name in plan.unused}
    return Source(format, path, leaves, plan.sizes, metadata, notes, unused, differing)


def _joined(
    plan: Plan, tensors: Tensors, leaf: str, shape: tuple[int, ...], path: str
) -> LazyArray:
    """Returns a leaf that is read from the tensors that make it."""
    places = plan.pieces[leaf]
    names = [piece.name for piece in places.values()]
    dtype = tensors[names[0]].dtype
    if dtype not in _FLOATS:
        expected = ", ".join(map(str, _FLOATS))
        raise InputError(
            f"{path}: {names[0]}: expected one of the dtypes {expected}, found {dtype}"
        )
    for name in names:
        if (other := tensors[name].dtype) != dtype:
            raise InputError(
                f"{path}: {names[0]} is {dtype}, {name} is {other}; expected one dtype for {leaf}"
            )

    def read(layer: int | None) -> np.ndarray:
        # One tensor holds all of the leaf.
        if () in places:
            piece = places[()]
            if piece.layout == SAME:
                return tensors[piece.name].read(layer)
            whole = parse_layout(piece.layout).forward(tensors[piece.name].read(None), plan.sizes)
            return whole if layer is None else whole[layer]
        result = np.empty(shape if layer is None else shape[1:], dtype)
        for place, piece in places.items():
            if layer is None or place[0] == layer:
                array = tensors[piece.name].read(None)
                array = parse_layout(piece.layout).forward(array, plan.sizes)
                result[place if layer is None else place[1:]] = array
        return result

    return _finite(LazyArray(shape, dtype, read), f"{path}: {leaf}")


def _finite(array: LazyArray, where: str) -> LazyArray:
    """Returns the array, which refuses NaN and infinity when it is read."""

    def read(layer: int | None) -> np.ndarray:
        found = array.read(layer)
        check_finite(found, where if layer is None else f"{where} layer {layer}")
        return found

    return dataclasses.replace(array, read=read)


def cast(source: Source, dtype: np.dtype | None) -> Source:
    """Returns the source in another dtype, rounded to nearest; None keeps each leaf's own.

    Reading raises InputError if a number is too large for the dtype.
    """
    if dtype is None:
        return source

    def narrow(path: str, leaf: LazyArray) -> LazyArray:
        def read(layer: int | None) -> np.ndarray:
            return leaf.read(layer).astype(dtype, copy=False)

        return _finite(LazyArray(leaf.shape, dtype, read), f"{source.path}: {path}")

    leaves = {path: narrow(path, leaf) for path, leaf in source.leaves.items()}
    return dataclasses.replace(source, leaves=leaves)


# ---- ours to foreign


def torch_tensors(source: Source, table: list[rules.Rule]) -> Iterator[tuple[str, LazyArray]]:
    """Yields every tensor of a PyTorch port, in the order in which they are best read.

    The leaf or layer that was read last is kept for the tensors that are made of it.
    """
    shapes = {path: leaf.shape for path, leaf in source.leaves.items()}
    zeros = source.leaves["action_in_proj/kernel"].dtype  # the dtype of tensors of zeros
    held: dict[tuple[str, int | None], np.ndarray] = {}

    def tensor(entry: rules.Entry) -> LazyArray:
        def read(_: int | None) -> np.ndarray:
            stacked = is_stacked(entry.path)
            part = (entry.path, entry.place[0] if stacked else None)
            if part not in held:
                held.clear()  # frees its memory before the next one is read
                held[part] = source.leaves[entry.path].read(part[1])
            place = entry.place[1:] if stacked else entry.place
            return parse_layout(entry.layout).inverse(held[part][place])

        if not entry.path:
            return LazyArray(entry.shape, zeros, lambda _: np.zeros(entry.shape, zeros))
        return LazyArray(entry.shape, source.leaves[entry.path].dtype, read)

    for entry in rules.entries(table, shapes, source.sizes, source.path):
        yield entry.name, tensor(entry)


# ---- comparing


def bits(x: np.ndarray) -> np.ndarray:
    """Returns the array's bytes as unsigned integers.

    So equal means equal to the bit, also for NaN and signed zero.
    """
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays are equal to the bit."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(bits(a), bits(b))


class Comparison(NamedTuple):
    """Says how many of a leaf's elements are not the same to the bit."""

    path: str
    elements: int
    differing: int


def compare(source: Source, back: Source) -> Iterator[Comparison]:
    """Compares every leaf of what was written and of what was read back, layer by layer.

    A leaf that one of them lacks, or has in another shape or dtype, differs in all its elements.
    After a cast the rounded values must come back, to the bit.
    """
    for path in sorted(source.leaves.keys() | back.leaves.keys()):
        ours, theirs = (leaves.get(path) for leaves in (source.leaves, back.leaves))
        size = math.prod((ours or theirs).shape)  # type: ignore[union-attr]  # one of them is there
        differing = size
        if ours == theirs:
            parts = zip(source.parts(path), back.parts(path), strict=True)
            differing = sum(int(np.count_nonzero(bits(a) != bits(b))) for (_, a), (_, b) in parts)
        yield Comparison(path, size, differing)
