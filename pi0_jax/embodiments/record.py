"""Defines the record of a robot and its action space. It is data, and no code.

A record says which of the robot's cameras fills which slot, what each state and action dimension
is, and how a chunk is executed. Rows of datasets name a record. A checkpoint carries, as JSON, the
records on which it was trained, and the policy reads them.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from pi0_jax.embodiments.client_keys import ClientKeys, fields_of, names_of, several
from pi0_jax.embodiments.readings import Readings, readings
from pi0_jax.errors import InputError
from pi0_jax.observation import CAMERA_SLOTS

# One turn, in the units that an angle may have.
TURN = {"rad": 2 * math.pi, "deg": 360.0}
_TURN_TOLERANCE = 0.01  # how far low and high may differ from a turn, as a share of it


class _Dim:
    """Holds what a state dimension and an action dimension say in the same fields."""

    name: str
    unit: str
    low: float | None
    high: float | None
    one_means: Literal["", "open", "closed"]
    open: float | None
    closed: float | None
    periodic: bool

    @property
    def label(self) -> str:
        """Returns the name and the unit."""
        return f"{self.name} [{self.unit}]"

    @property
    def ends(self) -> tuple[float, float] | None:
        """Returns the robot's numbers for an open and a closed gripper, or None if not declared."""
        if self.open is not None and self.closed is not None:
            return float(self.open), float(self.closed)
        if self.one_means and self.unit == "1":
            return (1.0, 0.0) if self.one_means == "open" else (0.0, 1.0)
        return None

    @property
    def larger_is(self) -> Literal["", "open", "closed"]:
        """Returns what a gripper's larger numbers mean, or "" where that is not declared."""
        if self.open is not None and self.closed is not None:
            return "open" if self.open > self.closed else "closed"
        return self.one_means

    @property
    def turn(self) -> tuple[float, float] | None:
        """Returns where a periodic angle's turn begins and how long it is, or None."""
        if not self.periodic:
            return None
        period = TURN[self.unit]
        return (-period / 2 if self.low is None else float(self.low)), period


@dataclasses.dataclass(frozen=True)
class StateDim(_Dim):
    """Describes one dimension of a robot's state.

    Attributes:
        name: what it is called, such as "joint_0".
        unit: "rad", "m", "rad/s" and so on; "1" for a number without a unit.
        low: what is recorded is at least this; None where that is not known.
        high: what is recorded is at most this; None where that is not known. One of the two can be
            known alone.
        one_means: for a gripper, which way its numbers count: "open" or "closed".
        open: for a gripper, instead of one_means, what is read where it is open.
        closed: for a gripper, what is read where it is closed.
        periodic: whether it is an angle that turns, so that one turn further is the same place. It
            is read in [low, low + a turn). By default that is half a turn either way.
    """

    name: str
    unit: str
    low: float | None = None
    high: float | None = None
    one_means: Literal["", "open", "closed"] = ""
    open: float | None = None
    closed: float | None = None
    periodic: bool = False


@dataclasses.dataclass(frozen=True)
class ActionDim(_Dim):
    """Describes one number of an action, as the robot's `step` takes it.

    A gripper says what its step takes for open and for closed: `one_means` for a number in [0, 1],
    `open` and `closed` for any other.

        one_means="open"          1 opens, 0 closes
        open=-1.0, closed=1.0     -1 opens, +1 closes
        open=0.08, closed=0.0     a width in m

    A dataset may have recorded something else. Then the dataset's record says it. An index holds
    1 = open.

    Attributes:
        name: what it is called, such as "joint_0".
        unit: "rad", "m", "rad/s" and so on; "1" for a number without a unit.
        kind: "absolute", or "relative": a change since the last step, which is 0 past an episode's
            end.
        delta: for an absolute action, whether the model learns its difference from the state
            dimension of the same name.
        low: an action is at least this; None where that is not known.
        high: an action is at most this; None where that is not known. One of the two can be known
            alone.
        one_means: for a gripper in [0, 1], what the robot takes 1 for: "open" or "closed".
        open: for a gripper, instead of one_means, what opens it.
        closed: for a gripper, what closes it.
        periodic: whether it is an angle that turns, as for StateDim. The actions of a policy lie in
            the same turn.
        delta_from: the state dimension from which a delta is taken, where it has another name.
        limits: hard limits, low and high, of what the robot's `step` may be told. What lies beyond
            is cut off (limits.py).
    """

    name: str
    unit: str
    kind: Literal["absolute", "relative"]
    delta: bool = False
    low: float | None = None
    high: float | None = None
    one_means: Literal["", "open", "closed"] = ""
    open: float | None = None
    closed: float | None = None
    periodic: bool = False
    delta_from: str = ""
    limits: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Embodiment:
    """Describes a robot and its action space as data: what the numbers and the cameras are.

    A wrong record raises InputError, which names the field.

    Attributes:
        name: the record's name.
        robot: what the robot is, for people.
        cameras: the model's camera slot (base_0_rgb, left_wrist_0_rgb, right_wrist_0_rgb) -> the
            robot's name for the camera. A robot fills any of the three.
        state: the state's dimensions, in their order.
        actions: an action's dimensions, in their order.
        control_hz: actions per second; 0 where that is not known.
        execute_steps: how many steps of a chunk are executed before the next chunk is asked for.
        client_keys: how the robot's clients name an observation's parts. None means the names of a
            RawObservation, `images/<camera>` and `state`.
        image_rotation: degrees by which a client must turn the images of its cameras (or of its
            simulator) before it sends them, since the data were turned so.
    """

    name: str
    robot: str
    cameras: Mapping[str, str]
    state: tuple[StateDim, ...]
    actions: tuple[ActionDim, ...]
    control_hz: float
    execute_steps: int
    client_keys: ClientKeys | None = None
    image_rotation: int = 0

    def __post_init__(self) -> None:
        if self.client_keys is not None:
            self._check_keys(self.client_keys)
        if self.image_rotation not in (0, 90, 180, 270):
            raise InputError(
                f"embodiment {self.name}: image_rotation: expected 0, 90, 180 or 270 degrees, found {self.image_rotation!r}"
            )
        for slot in self.cameras:
            if slot not in CAMERA_SLOTS:
                raise InputError(
                    f"embodiment {self.name}: camera slot {slot!r} is unknown; the slots are {', '.join(CAMERA_SLOTS)}"
                )
        for part, dims in (("state", self.state), ("action", self.actions)):
            for dim in dims:
                if problem := next(_problems(dim), None):
                    raise InputError(f"embodiment {self.name}: {part} {dim.name!r}: {problem}")
        right = isinstance(self.control_hz, int | float) and self.control_hz >= 0
        if not (right and isinstance(self.execute_steps, int) and self.execute_steps >= 1):
            found = f"control_hz {self.control_hz!r}, execute_steps {self.execute_steps!r}"
            raise InputError(
                f"embodiment {self.name}: expected control_hz of at least 0 and execute_steps of at least 1, found {found}"
            )
        for dim in self.actions:
            if problem := next(_action_problems(dim, self.state), None):
                raise InputError(f"embodiment {self.name}: action {dim.name!r} {problem}")

    @functools.cached_property
    def delta_states(self) -> tuple[int | None, ...]:
        """Returns, for each action, the place of the state dimension that it is learnt relative to.

        The state dimension is found by its name. The place is None where the action is no delta.
        """
        places = {dim.name: i for i, dim in enumerate(self.state)}
        return tuple(
            places[dim.delta_from or dim.name] if dim.delta else None for dim in self.actions
        )

    @functools.cached_property
    def readings(self) -> Readings:
        """Returns which dimensions are deltas and which turn, as arrays."""
        return readings(self.state, self.actions, self.delta_states)

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
        """Returns `client_keys`. A record without them has those of a RawObservation."""
        if self.client_keys is not None:
            return self.client_keys
        cameras = {camera: f"images/{camera}" for camera in self.cameras.values()}
        return ClientKeys(cameras, (("state", len(self.state)),) if self.state else ())

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain data, for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Any, *, stored: bool = False) -> "Embodiment":
        """Reads a record from plain data.

        Args:
            record: what `to_json` gave.
            stored: whether a program wrote the record, perhaps an older version. Before there was
                `delta_from`, a delta was taken from the state at the action's own place, whatever
                its name. That stays so for what was trained then.

        Raises:
            InputError: a field is unknown, missing or of another type.
        """
        where = (
            f"embodiment {record['name']}"
            if isinstance(record, Mapping) and "name" in record
            else "embodiment"
        )
        fields = fields_of(cls, record, where)
        fields["cameras"] = names_of(fields["cameras"], f"{where}: cameras")
        fields["state"], fields["actions"] = (
            tuple(
                kind(**_with_limits(fields_of(kind, dim, f"{where}: {part} {i}")))
                for i, dim in enumerate(several(fields[part], f"{where}: {part}"))
            )
            for part, kind in (("state", StateDim), ("actions", ActionDim))
        )
        if stored:
            fields["actions"] = tuple(
                _from_same_place(dim, given, fields["state"][i : i + 1])
                for i, (dim, given) in enumerate(
                    zip(fields["actions"], record["actions"], strict=True)
                )
            )
        # The records of older checkpoints have no client keys.
        if "client_keys" in fields and fields["client_keys"] is not None:
            fields["client_keys"] = ClientKeys.from_json(
                fields["client_keys"], f"{where}: client_keys"
            )
        return cls(**fields)


def _problems(dim: StateDim | ActionDim) -> Iterator[str]:
    """Yields what is wrong with one dimension by itself."""
    if dim.one_means not in ("", "open", "closed"):
        yield f"one_means is {dim.one_means!r}; expected open, closed or nothing"
    numbers = {"low": dim.low, "high": dim.high, "open": dim.open, "closed": dim.closed}
    for field, value in numbers.items():
        if value is not None and not (_is_number(value) and math.isfinite(value)):
            yield f"{field}: expected a finite number, found {value!r}"
    if (dim.open is None) != (dim.closed is None) or (
        dim.open is not None and dim.open == dim.closed
    ):
        yield f"expected open and closed, two numbers that differ, found open {dim.open} and closed {dim.closed}"
    if dim.open is not None and dim.one_means:
        yield "expected one_means, or open and closed, found both"
    if not isinstance(dim.periodic, bool):
        yield f"periodic: expected True or False, found {dim.periodic!r}"
    if dim.periodic and dim.unit not in TURN:
        yield f"periodic: expected an angle in {' or '.join(TURN)}, found unit {dim.unit!r}"
    if dim.periodic and dim.low is not None and dim.high is not None:
        period = TURN[dim.unit]
        if abs(dim.high - dim.low - period) > _TURN_TOLERANCE * period:
            yield f"periodic: expected low and high a turn apart ({period:g} {dim.unit}), found {dim.low:g} and {dim.high:g}"


def _action_problems(dim: ActionDim, state: Sequence[StateDim]) -> Iterator[str]:
    """Yields what is wrong with an action dimension, beside the states."""
    if dim.kind not in ("absolute", "relative"):
        yield f"has kind {dim.kind!r}; expected absolute or relative"
    if dim.one_means == "closed" and (
        (dim.kind, dim.unit) != ("absolute", "1") or not {dim.low, dim.high} <= {None, 0, 1}
    ):
        yield "can have one_means closed only if it is absolute, of unit 1 and in [0, 1]; open and closed give other ends"
    if dim.open is not None and (dim.kind != "absolute" or (dim.low, dim.high) != (None, None)):
        yield "can have open and closed only if it is absolute and without low and high: its range lies between the two"
    if dim.limits is not None and not (
        len(dim.limits) == 2
        and all(_is_number(end) and math.isfinite(end) for end in dim.limits)
        and dim.limits[0] < dim.limits[1]
    ):
        yield f"has limits {dim.limits}; expected two finite numbers, the lower one first"
    if dim.periodic and dim.kind != "absolute":
        yield "can be periodic only if it is absolute: a change of an angle does not turn"
    if not dim.delta:
        return
    wanted = dim.delta_from or dim.name
    found = [other for other in state if other.name == wanted]
    if dim.kind != "absolute" or len(found) != 1 or found[0].unit != dim.unit:
        names = ", ".join(other.label for other in state) or "none"
        yield (
            f"can be a delta only if it is absolute and one state dimension called {wanted!r} (delta_from names another) has its unit,"
            f" {dim.unit}; the states are {names}"
        )
    elif dim.turn != found[0].turn:
        yield (
            f"is a delta: expected it to turn as the state {wanted!r} does, found"
            f" {dim.turn or 'not periodic'} and {found[0].turn or 'not periodic'}"
        )


def _from_same_place(
    dim: ActionDim, given: Mapping[str, Any], state: Sequence[StateDim]
) -> ActionDim:
    """Returns the action, whose delta is taken from the state at its place in an older record.

    A record is older if it has no field `delta_from`: there was no other way then.
    """
    if not dim.delta or "delta_from" in given or not state or state[0].name == dim.name:
        return dim
    return dataclasses.replace(dim, delta_from=state[0].name)


def _with_limits(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a dimension, with limits as a pair where JSON made a list of them."""
    if isinstance(fields.get("limits"), list):
        fields["limits"] = tuple(fields["limits"])
    return fields


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_Named)


def by_name(kind: str, *groups: Iterable[Named]) -> dict[str, Named]:
    """Returns every record of the groups under its name.

    Raises:
        InputError: two records have the same name; `kind` says what they are of.
    """
    records: dict[str, Named] = {}
    for record in itertools.chain(*groups):
        if record.name in records:
            where = f"{kind} {record.name}"
            raise InputError(f"{where}: expected names that differ, found two records of it")
        records[record.name] = record
    return records
