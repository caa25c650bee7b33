"""Weights that are not finite are refused where they are read, and actions where they are given."""

from collections.abc import Sequence

import numpy as np

from pi0_jax.embodiments import ActionDim
from pi0_jax.errors import InputError, NotFiniteError


def check_finite(x: np.ndarray, where: str) -> None:
    """Raises InputError if an array of floats holds NaN or an infinite number.

    It needs no other array of the same size. The floats are read as integers: of each sign,
    infinity and NaN are the largest.

    Args:
        x: floats of any width.
        where: the beginning of the message.
    """
    positive, negative = (
        np.array(end, x.dtype).view(f"{kind}{x.dtype.itemsize}")
        for end, kind in ((np.inf, "i"), (-np.inf, "u"))
    )
    # Signed integers order the positive floats: negative ones are below 0, infinity and NaN at the
    # top. Unsigned integers order the negative floats above all positive ones.
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
    """Raises NotFiniteError for actions that are NaN or infinite.

    Args:
        actions: float[B, H, A].
        dims: the A action dimensions; the first that is wrong is named.
    """
    finite = np.isfinite(actions)
    if not finite.all():
        row, _, dim = np.argwhere(~finite)[0]
        raise NotFiniteError(
            f"observation {row}: action {dims[dim].name}: expected finite numbers from the policy, found NaN or infinite"
        )
