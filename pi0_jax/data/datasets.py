"""The datasets that the package knows, by name."""

from pi0_jax.data.oxe.bridge import BRIDGE
from pi0_jax.data.reach import REACH
from pi0_jax.data.rows import DatasetRow
from pi0_jax.errors import InputError

ROWS = {row.name: row for row in (*REACH, BRIDGE)}


def find_row(name: str) -> DatasetRow:
    """The row called `name`; InputError if there is none."""
    if name not in ROWS:
        raise InputError(f"dataset {name!r} is unknown; expected one of {', '.join(sorted(ROWS))}")
    return ROWS[name]
