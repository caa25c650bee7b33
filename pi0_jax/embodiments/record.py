"""A record of a robot and its action space: data, no code.

A record says which of the robot's cameras fills which slot, what each state and action dimension is, and how a chunk
is executed. Data rows name a record; a checkpoint carries the records it was trained on as JSON; the policy reads them.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pi0_jax.errors import InputError
from pi0_jax.observation import CAMERA_SLOTS


@dataclasses.dataclass(frozen=True)
class StateDim:
    """One dimension of a robot's state.

    Attributes:
        name: what it is called, such as "joint_0".
        unit: "rad", "m", "rad/s" and so on; "1" for a number without a unit.
        low: what is recorded is at least this; None where that is not known.
        high: what is recorded is at most this.
        one_means: of a gripper: "open" or "closed", what the value 1 means.
    """

    name: str
    unit: str
    low: float | None = None
    high: float | None = None
    one_means: Literal["", "open", "closed"] = ""


@dataclasses.dataclass(frozen=True)
class ActionDim:
    """One dimension of a robot's actions.

    Attributes:
        name: what it is called, such as "joint_0".
        unit: "rad", "m", "rad/s" and so on; "1" for a number without a unit.
        kind: "absolute"; or "relative", a change since the last step, which is 0 past an
            episode's end.
        delta: of an absolute action: the model learns its difference from the state dimension of
            the same index.
        low: an action is at least this; None where that is not known.
        high: an action is at most this.
        one_means: of a gripper in [0, 1]: "open" or "closed", what the robot takes 1 for. Datasets
            are indexed with 1 = open, and "closed" turns that round for the robot.
    """

    name: str
    unit: str
    kind: Literal["absolute", "relative"]
    delta: bool = False
    low: float | None = None
    high: float | None = None
    one_means: Literal["", "open", "closed"] = ""


@dataclasses.dataclass(frozen=True)
class ClientKeys:
    """How the clients of a robot name the parts of an observation that they send.

    The prompt is always `prompt`. A mapping inside the observation counts as keys joined by "/".

    Attributes:
        cameras: the robot's name for the camera -> key.
        state: keys, each with its number of values; side by side they are the state.
        channel_first: images come as uint8[3, height, width].
        unread: keys that may come and are not read.
    """

    cameras: Mapping[str, str]
    state: tuple[tuple[str, int], ...]
    channel_first: bool = False
    unread: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, record: Any, where: str) -> "ClientKeys":
        """`where`: what the record is, for errors. Raises InputError, naming the field."""
        fields = _fields_of(cls, record, where)
        pairs = _several(fields["state"], f"{where}: state")
        if not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], int)
            for pair in pairs
        ):
            raise InputError(
                f"{where}: state: expected pairs of a key and a number of values, found {fields['state']}"
            )
        fields["cameras"] = _names(fields["cameras"], f"{where}: cameras")
        fields["state"] = tuple((key, count) for key, count in pairs)
        if "unread" in fields:
            fields["unread"] = _several(fields["unread"], f"{where}: unread")
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """A robot and its action space, as data: what the numbers and the cameras are.

    A wrong record raises InputError, which names the field.

    Attributes:
        name: the record's name.
        robot: what the robot is, for people.
        cameras: the model's camera slot (base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb) -> the
            robot's name for the camera. A robot fills any of the three.
        state: the state's dimensions, in their order.
        actions: an action's dimensions, in their order.
        control_hz: actions per second; 0 where that is not known.
        execute_steps: steps of a chunk that are executed before the next is asked for.
        client_keys: how the robot's clients name an observation's parts; None: as a
            RawObservation, `images/<camera>` and `state`.
    """

    name: str
    robot: str
    cameras: Mapping[str, str]
    state: tuple[StateDim, ...]
    actions: tuple[ActionDim, ...]
    control_hz: float
    execute_steps: int
    client_keys: ClientKeys | None = None

    def __post_init__(self) -> None:
        if self.client_keys is not None:
            self._check_keys(self.client_keys)
        for slot in self.cameras:
            if slot not in CAMERA_SLOTS:
                raise InputError(
                    f"embodiment {self.name}: camera slot {slot!r} is unknown; the slots are {', '.join(CAMERA_SLOTS)}"
                )
        for dim in (*self.state, *self.actions):
            if dim.one_means not in ("", "open", "closed"):
                raise InputError(
                    f"embodiment {self.name}: {dim.name!r}: one_means is {dim.one_means!r}; expected open, closed or nothing"
                )
        right = isinstance(self.control_hz, int | float) and self.control_hz >= 0
        if not (right and isinstance(self.execute_steps, int) and self.execute_steps >= 1):
            found = f"control_hz {self.control_hz!r}, execute_steps {self.execute_steps!r}"
            raise InputError(
                f"embodiment {self.name}: expected control_hz of at least 0 and execute_steps of at least 1, found {found}"
            )
        for i, dim in enumerate(self.actions):
            if dim.kind not in ("absolute", "relative"):
                raise InputError(
                    f"embodiment {self.name}: action {dim.name!r} has kind {dim.kind!r}; expected absolute or relative"
                )
            if dim.one_means == "closed" and (
                (dim.kind, dim.unit) != ("absolute", "1") or not {dim.low, dim.high} <= {None, 0, 1}
            ):
                raise InputError(
                    f"embodiment {self.name}: action {dim.name!r} can have one_means closed only if it is absolute, of unit 1 and in [0, 1]"
                )
            if dim.delta and (
                dim.kind != "absolute" or i >= len(self.state) or self.state[i].unit != dim.unit
            ):
                raise InputError(
                    f"embodiment {self.name}: action {dim.name!r} can be a delta only if it is absolute "
                    f"and state dimension {i} has its unit"
                )

    def _check_keys(self, keys: ClientKeys) -> None:
        if set(keys.cameras) != set(self.cameras.values()):
            raise InputError(
                f"embodiment {self.name}: client keys: expected cameras {sorted(self.cameras.values())}, found {sorted(keys.cameras)}"
            )
        if (found := sum(count for _, count in keys.state)) != len(self.state):
            raise InputError(
                f"embodiment {self.name}: client keys: expected {len(self.state)} values of state, found {found}"
            )
        used = [*keys.cameras.values(), *(key for key, _ in keys.state), *keys.unread, "prompt"]
        if len(set(used)) < len(used):
            raise InputError(
                f"embodiment {self.name}: client keys: expected keys that differ, found {', '.join(used)}"
            )

    @property
    def keys(self) -> ClientKeys:
        """Returns `client_keys`, or where the record has none those of a RawObservation."""
        if self.client_keys is not None:
            return self.client_keys
        cameras = {camera: f"images/{camera}" for camera in self.cameras.values()}
        return ClientKeys(cameras, (("state", len(self.state)),) if self.state else ())

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data, for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> "Embodiment":
        """Reads a record from plain data.

        Raises:
            InputError: a field is unknown, missing or of another type.
        """
        where = (
            f"embodiment {record['name']}"
            if isinstance(record, Mapping) and "name" in record
            else "embodiment"
        )
        fields = _fields_of(cls, record, where)
        fields["cameras"] = _names(fields["cameras"], f"{where}: cameras")
        fields["state"], fields["actions"] = (
            tuple(
                kind(**_fields_of(kind, dim, f"{where}: {part} {i}"))
                for i, dim in enumerate(_several(fields[part], f"{where}: {part}"))
            )
            for part, kind in (("state", StateDim), ("actions", ActionDim))
        )
        # records of older checkpoints lack it
        if "client_keys" in fields and fields["client_keys"] is not None:
            fields["client_keys"] = ClientKeys.from_json(
                fields["client_keys"], f"{where}: client_keys"
            )
        return cls(**fields)


def _fields_of(kind: type, record: Any, where: str) -> dict[str, Any]:
    """The record, if its keys are fields of the dataclass `kind` and all that have no default are there."""
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


def _names(value: Any, where: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) for pair in value.items() for name in pair
    ):
        raise InputError(f"{where}: expected a map from text to text, found {value!r}")
    return value


def _several(value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, found {type(value).__name__}")
    return tuple(value)


def by_name(*groups: Iterable[Embodiment]) -> dict[str, Embodiment]:
    """Every record of the groups under its name. Raises InputError where two have one name."""
    records: dict[str, Embodiment] = {}
    for record in itertools.chain(*groups):
        if record.name in records:
            raise InputError(
                f"embodiment {record.name}: expected names that differ, found two records of it"
            )
        records[record.name] = record
    return records
