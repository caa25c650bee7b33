"""A conversion is read back through its inverse and compared with what it was made from."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pi0_jax.convert.source import Source, bits


class Comparison(NamedTuple):
    """Holds how many numbers of a leaf differ.

    Attributes:
        path: the leaf's path.
        elements: the number of its elements.
        differing: the number of elements whose bits are not the same.
    """

    path: str
    elements: int
    differing: int


def compare(source: Source, back: Source) -> Iterator[Comparison]:
    """Compares every leaf of two sources, layer by layer.

    A leaf that one of them lacks, or has in another shape or dtype, differs in all its elements.
    After a cast the rounded values must come back, to the bit.

    Args:
        source: what was written.
        back: what was read back.
    """
    for path in sorted(source.leaves.keys() | back.leaves.keys()):
        if (
            path not in back.leaves
            or path not in source.leaves
            or source.leaves[path] != back.leaves[path]
        ):
            whole = (source if path in source.leaves else back).leaves[path]
            yield Comparison(path, int(np.prod(whole.shape)), int(np.prod(whole.shape)))
            continue
        elements = differing = 0
        for (_, a), (_, b) in zip(source.parts(path), back.parts(path), strict=True):
            elements += a.size
            differing += int(np.count_nonzero(bits(a) != bits(b)))
        yield Comparison(path, elements, differing)
