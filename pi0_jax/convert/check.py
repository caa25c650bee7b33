"""A conversion, read back through its inverse and compared with what it was made from."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pi0_jax.convert.source import Source, bits


class Comparison(NamedTuple):
    path: str
    elements: int
    differing: int  # elements whose bits are not the same


def compare(source: Source, back: Source) -> Iterator[Comparison]:
    """Every leaf of the two, layer by layer. A leaf that one of them lacks, or has in another shape or dtype, differs in all its elements.

    The source is what was written, so after a cast it is the rounded values that must come back, to the bit.
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
