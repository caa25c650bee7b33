"""Weights that are not finite are refused where they are read, and actions where they are handed out."""

from collections.abc import Sequence

import numpy as np

from pi0_jax.embodiments import ActionDim
from pi0_jax.errors import InputError, NotFiniteError


def check_finite(x: np.ndarray, where: str) -> None:
    """Raises InputError, which begins with `where`, if an array of floats holds NaN or an infinite number.

    It needs no other array of its size: read as integers, what is not finite is at the end of its sign's range.
    """
    positive, negative = (
        np.array(end, x.dtype).view(f"{kind}{x.dtype.itemsize}")
        for end, kind in ((np.inf, "i"), (-np.inf, "u"))
    )
    if (
        x.view(positive.dtype).max(initial=0) < positive
        and x.view(negative.dtype).max(initial=0) < negative
    ):
        return
    found = np.count_nonzero(~np.isfinite(x))
    raise InputError(
        f"{where}: expected weights that are finite in {x.dtype}, found {found:,} NaN or infinite"
    )


def check_finite_actions(actions: np.ndarray, dims: Sequence[ActionDim]) -> None:
    """Raises NotFiniteError that names the first dimension of chunks float[B, H, A] that is NaN or infinite."""
    finite = np.isfinite(actions)
    if not finite.all():
        row, _, dim = np.argwhere(~finite)[0]
        raise NotFiniteError(
            f"observation {row}: action {dims[dim].name}: expected finite numbers from the policy, found NaN or infinite"
        )
