"""Holds the datasets that the package knows, by name."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pi0_jax.data import storage
from pi0_jax.data.oxe.aloha import ALOHA
from pi0_jax.data.oxe.arms import ARMS
from pi0_jax.data.oxe.austin import AUSTIN
from pi0_jax.data.oxe.bridge import BRIDGE
from pi0_jax.data.oxe.droid import DROID
from pi0_jax.data.oxe.franka import FRANKA
from pi0_jax.data.oxe.google import GOOGLE
from pi0_jax.data.oxe.libero import LIBERO
from pi0_jax.data.oxe.rtx import RTX
from pi0_jax.data.records.metadata import foreign_format
from pi0_jax.data.rows import Dataset, row_from_mapping
from pi0_jax.data.simulated import METAWORLD, REACH
from pi0_jax.data.storage import AnyPath
from pi0_jax.embodiments.record import by_name
from pi0_jax.errors import InputError

_MOST_NAMES = 5  # in a message

# A new file of rows is a new line here.
ROWS = by_name(
    "dataset", REACH, METAWORLD, BRIDGE, GOOGLE, RTX, ALOHA, ARMS, AUSTIN, DROID, FRANKA, LIBERO
)  # fmt: skip


def datasets_in(data_dir: AnyPath) -> list[str]:
    """Returns the names of the package's rows whose folders are in `data_dir`.

    Raises:
        InputError: there is none, or `data_dir` is a URL, which is not searched.
    """
    place = storage.locate(data_dir)
    if not isinstance(place, Path):
        raise InputError(
            f"{place}: expected datasets by name (--datasets), since a URL is not searched for them"
        )
    if not place.is_dir():
        raise InputError(f"{place}: expected a folder of datasets, found none")
    if other := foreign_format(place):
        raise InputError(other)
    if not (names := [row.name for row in ROWS.values() if (place / row.tfds_name).is_dir()]):
        found = (
            ", ".join(sorted(child.name for child in place.iterdir())[:_MOST_NAMES]) or "nothing"
        )
        raise InputError(
            f"{place}: expected folders of known datasets, found {found}; those of your own are known to a config (--config)"
        )
    return names


def find_row(
    name: str,
    own: Mapping[str, Any] = MappingProxyType({}),
    *,
    keep_empty_language: Collection[str] = (),
) -> Dataset:
    """Finds a dataset's row by its name.

    Args:
        name: the name of a row of the package, or of `own`.
        own: name -> Dataset, or plain data as row_from_mapping reads them.
        keep_empty_language: names of the rows of which frames without an instruction are drawn,
            whatever the row says.

    Raises:
        InputError: there is no such row, or there are two of them.
    """
    row = _row(name, own)
    return (
        dataclasses.replace(row, keep_empty_language=True) if name in keep_empty_language else row
    )


def _row(name: str, own: Mapping[str, Any]) -> Dataset:
    if name in own and name in ROWS:
        raise InputError(
            f"dataset {name}: the config's own_datasets holds one, and the package another; give yours another name"
        )
    if name in own and isinstance(own[name], Dataset):
        if own[name].name != name:
            raise InputError(
                f"dataset {name}: expected a record of that name, found {own[name].name!r}"
            )
        return own[name]
    if name in own:
        return row_from_mapping(name, own[name])
    if name not in ROWS:
        close = difflib.get_close_matches(name, [*own, *ROWS], _MOST_NAMES)
        known = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"expected one of {', '.join(sorted([*ROWS, *own]))}"
        )
        raise InputError(f"dataset {name!r} is unknown; {known}")
    return ROWS[name]
