"""The datasets that the package knows, by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pi0_jax.data.oxe.bridge import BRIDGE
from pi0_jax.data.reach import REACH
from pi0_jax.data.rows import DatasetRow, row_from_mapping
from pi0_jax.errors import InputError

ROWS = {row.name: row for row in (*REACH, BRIDGE)}


def find_row(name: str, own: Mapping[str, Any] = MappingProxyType({})) -> DatasetRow:
    """The row called `name`, from the package or from `own` (name -> plain data, see row_from_mapping).

    Raises InputError: no such row, or two of them.
    """
    if name in own and name in ROWS:
        raise InputError(f"dataset {name}: the config's own_datasets holds one, and the package another; give yours another name")
    if name in own:
        return row_from_mapping(name, own[name])
    if name not in ROWS:
        raise InputError(f"dataset {name!r} is unknown; expected one of {', '.join(sorted([*ROWS, *own]))}")
    return ROWS[name]
