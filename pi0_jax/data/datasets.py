"""The datasets that the package knows, by name."""

import itertools
from collections.abc import Iterable

from pi0_jax.data.oxe.aloha import ALOHA
from pi0_jax.data.oxe.arms import ARMS
from pi0_jax.data.oxe.austin import AUSTIN
from pi0_jax.data.oxe.bridge import BRIDGE
from pi0_jax.data.oxe.droid import DROID
from pi0_jax.data.oxe.franka import FRANKA
from pi0_jax.data.oxe.google import GOOGLE
from pi0_jax.data.oxe.libero import LIBERO
from pi0_jax.data.oxe.rtx import RTX
from pi0_jax.data.reach import REACH
from pi0_jax.data.rows import DatasetRow
from pi0_jax.errors import InputError


def by_name(*groups: Iterable[DatasetRow]) -> dict[str, DatasetRow]:
    """Every row of the groups under its name. Raises InputError where two have one name."""
    rows: dict[str, DatasetRow] = {}
    for row in itertools.chain(*groups):
        if row.name in rows:
            raise InputError(f"dataset {row.name}: expected names that differ, found two rows of it")
        rows[row.name] = row
    return rows


# A new file of rows is a new line here.
ROWS = by_name(
    REACH,
    BRIDGE,
    GOOGLE,
    RTX,
    ALOHA,
    ARMS,
    AUSTIN,
    DROID,
    FRANKA,
    LIBERO,
)


def find_row(name: str) -> DatasetRow:
    """The row called `name`; InputError if there is none."""
    if name not in ROWS:
        raise InputError(f"dataset {name!r} is unknown; expected one of {', '.join(sorted(ROWS))}")
    return ROWS[name]
