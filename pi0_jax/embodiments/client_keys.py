"""A robot's clients name the parts of an observation in their own way.

The functions below read records from plain data.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pi0_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ClientKeys:
    """Says how the clients of a robot name the parts of an observation that they send.

    The prompt is always `prompt`. A mapping inside the observation counts as keys joined by "/".

    Attributes:
        cameras: the robot's name for the camera -> key.
        state: keys, each with its number of values. Side by side they are the state.
        channel_first: whether images come as uint8[3, height, width].
        unread: keys that may come and are not read.
    """

    cameras: Mapping[str, str]
    state: tuple[tuple[str, int], ...]
    channel_first: bool = False
    unread: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, record: Any, where: str) -> "ClientKeys":
        """Reads the keys from plain data.

        Args:
            record: a mapping of the fields.
            where: what the record is called in messages.

        Raises:
            InputError: a field is unknown, missing or of another type. The message names the field.
        """
        fields = fields_of(cls, record, where)
        pairs = several(fields["state"], f"{where}: state")
        if not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], int)
            for pair in pairs
        ):
            raise InputError(
                f"{where}: state: expected pairs of a key and a number of values, found {fields['state']}"
            )
        fields["cameras"] = names_of(fields["cameras"], f"{where}: cameras")
        fields["state"] = tuple((key, count) for key, count in pairs)
        if "unread" in fields:
            fields["unread"] = several(fields["unread"], f"{where}: unread")
        return cls(**fields)


def fields_of(kind: type, record: Any, where: str) -> dict[str, Any]:
    """Checks that a record has no fields but those of `kind`, and all that have no default."""
    fields = {
        field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(kind)
    }
    if not isinstance(record, Mapping):
        raise InputError(
            f"{where}: expected a map of {', '.join(fields)}, found {type(record).__name__}"
        )
    for key in record:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            expected = (
                f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(fields)}"
            )
            raise InputError(f"{where}: {key!r} is unknown; {expected}")
    if missing := [name for name, needed in fields.items() if needed and name not in record]:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    return dict(record)


def names_of(value: Any, where: str) -> Mapping[str, str]:
    """Checks that a value maps text to text, and returns it."""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) for pair in value.items() for name in pair
    ):
        raise InputError(f"{where}: expected a map from text to text, found {value!r}")
    return value


def several(value: Any, where: str) -> tuple[Any, ...]:
    """Checks that a value is a list, and returns it as a tuple."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, found {type(value).__name__}")
    return tuple(value)
