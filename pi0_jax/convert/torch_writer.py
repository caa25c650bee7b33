"""Our leaves become the tensors of a PyTorch port, one at a time."""

from collections.abc import Iterator

import numpy as np

from pi0_jax.convert import rules
from pi0_jax.convert.rules import Entry, Rule, parse_layout
from pi0_jax.convert.source import Leaf, Source, is_stacked


def torch_tensors(
    source: Source, table: list[Rule]
) -> tuple[dict[str, Leaf], Iterator[np.ndarray]]:
    """Returns every tensor's shape and dtype, and the arrays in the same order.

    Args:
        source: our leaves.
        table: the rules of the port.
    """
    shapes = {path: leaf.shape for path, leaf in source.leaves.items()}
    entries = rules.entries(table, shapes, source.sizes, source.path)
    dtype = source.leaves["state_proj/kernel"].dtype  # the dtype of tensors of zeros
    leaves = {
        entry.name: Leaf(entry.shape, source.leaves[entry.path].dtype if entry.path else dtype)
        for entry in entries
    }
    return leaves, _arrays(source, entries, dtype)


def _arrays(source: Source, entries: list[Entry], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields the arrays; one leaf or one layer is in memory at a time."""
    held: tuple[str, int | None] | None = None  # the leaf and the layer that `part` holds
    part = np.empty(0)
    for entry in entries:
        if not entry.path:
            part, held = np.empty(0), None
            yield np.zeros(entry.shape, dtype)
            continue
        layer = entry.place[0] if is_stacked(entry.path) else None
        if held != (entry.path, layer):
            part = np.empty(0)  # frees its memory before the next one is read
            part, held = source.fetch(entry.path, layer), (entry.path, layer)
        place = entry.place[1:] if is_stacked(entry.path) else entry.place
        yield parse_layout(entry.layout).inverse(part[place])
