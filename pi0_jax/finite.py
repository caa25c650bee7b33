"""Weights that are not finite are refused where they are read."""

import numpy as np

from pi0_jax.errors import InputError


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
