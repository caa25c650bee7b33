"""Reads and writes what an index holds beside its columns of numbers.

That is index.json, which has a hash of itself, and the text of the prompts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from pi0_jax.errors import InputError

_SEAL = "sha256"  # the hash of everything else in an index.json
SEALED = ("checksums", "told", "declared_sizes")  # only an index.json with such a hash has these
# What index.json held in every version.
_RECORD = {
    "steps": int,
    "episodes": int,
    "prompts": int,
    "views": list,
    "shards": list,
    "skipped": list,
    "image_sizes": dict,
    "version": dict,
    "decode_all": bool,
}


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what index.json holds, with its hash."""
    text = json.dumps(record, sort_keys=True)
    return {**record, _SEAL: hashlib.sha256(text.encode()).hexdigest()}


def is_intact(record: Mapping[str, Any]) -> bool:
    """Returns whether the hash is right. An index.json from before there was a hash has none."""
    rest = {name: value for name, value in record.items() if name != _SEAL}
    if _SEAL not in record:
        return not any(name in record for name in SEALED)
    return sealed(rest) == record


def read_record(path: Path) -> dict[str, Any]:
    """Reads an index.json.

    Raises:
        InputError: the file is missing, changed or damaged.
    """
    record = _read_json(path)
    found = (
        f"{type(record).__name__}"
        if not isinstance(record, dict)
        else "another checksum"
        if not is_intact(record)
        else next(
            (
                f"no {name}"
                for name, kind in _RECORD.items()
                if not isinstance(record.get(name), kind)
            ),
            "",
        )
    )
    if found:
        raise InputError(
            f"{path}: expected the description of an index, found {found}: it was changed or is damaged;"
            f" delete {path.parent} and build the index again"
        )
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the description of an index, found: {error}") from error


class Prompts(Sequence[str]):
    """Holds prompts that are mapped, and decoded when they are asked for."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text, self._ends = text, ends  # uint8[bytes], int64[p]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Returns the columns of an index that hold the prompts."""
        return {"prompt_text": self._text, "prompt_end": self._ends}

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        # An IndexError past the last prompt ends a loop over the sequence.
        end = self._ends[number]
        start = self._ends[number - 1] if number else 0
        return self._text[start:end].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
