"""Defines a row: what the package knows about an RLDS dataset, with a small rule if needed.

A row names raw fields by their path in the dataset's feature structure ("steps/observation/state",
"episode_metadata/file_path"). Its rule turns the raw columns of one episode into states and actions
of the row's embodiment. The rule runs when the index is built, and never in training. A dataset of
one's own is a row of one's own, in one's own config file, as plain data: see `row_from_mapping`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from pi0_jax.data.grippers import OPEN_IS_1, RecordedGripper
from pi0_jax.data.rule_source import RecordedRule, source_hash
from pi0_jax.embodiments import EMBODIMENTS, Embodiment
from pi0_jax.errors import InputError

STEPS = "steps/"


@dataclasses.dataclass(frozen=True)
class RawField:
    """Says what a dataset must declare for a field that its rule reads.

    Attributes:
        shape: the shape of one step's value.
        dtype: such as "float32"; "string" is the dtype of bytes.
        quaternions: where in the vector quaternions begin: four numbers of unit length each.
    """

    shape: tuple[int, ...]
    dtype: str
    quaternions: tuple[int, ...] = ()


ColourOrder = Literal["RGB", "BGR"]


@dataclasses.dataclass(frozen=True)
class CameraField:
    """Says where the images of one of the robot's cameras are.

    Several cameras may have taken the same place. Then one of them is drawn for each sample.

    Attributes:
        path: the field, such as "steps/observation/image".
        order: the order in which the published files hold the channels, "RGB" or "BGR".
        alternatives: fields of further views, in the same order of channels.
    """

    path: str
    order: ColourOrder = "RGB"
    alternatives: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the fields of all views."""
        return (self.path, *self.alternatives)


@dataclasses.dataclass(frozen=True)
class Language:
    """Says where the instruction is.

    Attributes:
        paths: fields, such as "steps/language_instruction". If there are several, one that is not
            empty is drawn for each sample.
        encoding: "utf-8" for a string; "code points" for int32[n] Unicode code points, padded
            with 0.
    """

    paths: tuple[str, ...]
    encoding: Literal["utf-8", "code points"] = "utf-8"


class Standardised(NamedTuple):
    """Holds one episode of T raw steps, in the embodiment's dimensions and units.

    If the record's `grippers` says how gripper actions were recorded, they are so here. Otherwise
    they are 1 = open, 0 = closed.

        step      0    1    2   ...  T-2  T-1
        keep      -    x    x   ...   x    -       x: may be drawn for training
        action    a    a    a   ...   a    .       stop = T-1: the last step has no action;
                                                   chunks end before it

    Attributes:
        state: float32[T, S].
        action: float32[T, A]. Rows from `stop` on are never read.
        keep: bool[T], which steps may be drawn. It is False from `stop` on.
        stop: steps [0, stop) have an action.
        success: what the dataset says; None if it says nothing. A rule that wants no failures keeps
            no step of them.
    """

    state: np.ndarray
    action: np.ndarray
    keep: np.ndarray
    stop: int
    success: bool | None = None


# Path -> [T, *shape] for a field of the steps, or [*shape] for a field of the episode, in the row's
# order.
Columns = Mapping[str, np.ndarray]
Rule = Callable[[Columns], Standardised]


def as_recorded(columns: Columns) -> Standardised:
    """The first field is the state, the second the action, as they were recorded; every step may be drawn."""
    state, action = list(columns.values())[:2]
    return Standardised(state, action, np.ones(len(state), bool), stop=len(state))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Describes an RLDS dataset as data: which raw field holds what, for which robot.

    A wrong record raises InputError, which names the field. A field is named by its path in the
    dataset's feature structure, such as "steps/observation/state".

    Attributes:
        name: its name in configs, mixtures and statistics.
        tfds_name: its folder below data_dir.
        versions: versions for which the record is right, the preferred one first.
        embodiment: the robot.
        cameras: the robot's name for the camera -> where its images are.
        fields: the raw fields that the rule reads, by path. Where there is no rule, the state
            comes first and then the action.
        language: where the instruction is.
        standardise: the rule, a function that turns the raw columns of one episode into a
            Standardised. It runs when the index is built. The default takes state and action as
            they were recorded, and every step.
        grippers: the name of a gripper's action -> how the dataset (or what the rule gives) counts
            it. For a gripper that is not named here, a rule gives 1 = open, and without a rule the
            robot's own numbers were recorded.
        revision: a number that is raised when what the rule gives changes for a reason that its
            source does not show.
        keep_empty_language: whether frames of episodes without an instruction are drawn.
        held_out: the share of the episodes that are held out, by hash, where the dataset has no
            validation split.
        notes: what a user should know.
    """

    name: str
    tfds_name: str
    versions: tuple[str, ...]
    embodiment: Embodiment
    cameras: Mapping[str, CameraField]
    fields: Mapping[str, RawField]
    language: Language
    standardise: Rule = as_recorded
    grippers: Mapping[str, RecordedGripper] = dataclasses.field(default_factory=dict)
    revision: int = 1
    keep_empty_language: bool = False
    held_out: float = 0.05
    notes: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the paths of all cameras' image fields."""
        return tuple(path for camera in self.cameras.values() for path in camera.views)

    @functools.cached_property
    def recorded_grippers(self) -> Mapping[int, RecordedGripper]:
        """Returns, for the place of each gripper's action, how its numbers were recorded."""
        return {
            place: self._recorded(dim.name, ends)
            for place, dim in enumerate(self.embodiment.actions)
            if (ends := dim.ends) is not None
        }

    def _recorded(self, name: str, ends: tuple[float, float]) -> RecordedGripper:
        if name in self.grippers:
            return self.grippers[name]
        return RecordedGripper(*ends) if self.standardise is as_recorded else OPEN_IS_1

    def to_mapping(self) -> dict[str, Any]:
        """Returns the record as plain data, without its rule; `row_from_mapping` reads it."""
        record = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := vars(self)[field.name]) != field.default and field.name != "name"
        }
        return record | {
            "embodiment": self.embodiment.to_json(),
            "cameras": {name: dataclasses.asdict(it) for name, it in self.cameras.items()},
            "fields": [{"path": path, **vars(field)} for path, field in self.fields.items()],
            "language": dataclasses.asdict(self.language),
            "grippers": {name: dataclasses.asdict(it) for name, it in self.grippers.items()},
        }

    def __post_init__(self) -> None:
        if problem := next(self._problems(), None):
            raise InputError(f"dataset row {self.name}: {problem}")

    def _problems(self) -> Iterator[str]:
        declared, given = set(self.embodiment.cameras.values()), set(self.cameras)
        if declared != given:
            yield f"expected cameras {sorted(declared)} as embodiment {self.embodiment.name} declares, found {sorted(given)}"
        for camera, raw in self.cameras.items():
            if raw.order not in ("RGB", "BGR") or not all(
                path.startswith(STEPS) for path in raw.views
            ):
                yield f"camera {camera}: expected a field of the steps in RGB or BGR order, found {raw}"
        if len(set(self.views)) < len(self.views):
            yield f"expected every image field once, found {', '.join(self.views)}"
        if self.standardise is as_recorded and [path.startswith(STEPS) for path in self.fields][
            :2
        ] != [True, True]:
            expected = "without a rule its first two fields are state and action: expected fields of the steps"
            yield f"{expected}, found {', '.join(self.fields) or 'none'}"
        ends = {dim.name: dim.ends for dim in self.embodiment.actions}
        for name, gripper in self.grippers.items():
            if name not in ends or ends[name] is None:
                found = ", ".join(known for known in ends if ends[known] is not None) or "none"
                yield (
                    f"grippers: expected actions of {self.embodiment.name} that say what opens and what closes (one_means, or open and"
                    f" closed), which are {found}; found {name!r}"
                )
            numbers = (gripper.open, gripper.closed, gripper.overshoot)
            if not all(
                isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
                for x in numbers
            ):
                yield f"grippers: {name}: expected finite numbers, found {gripper}"
            elif gripper.open == gripper.closed or not 0 <= gripper.overshoot <= 0.5:
                yield f"grippers: {name}: expected open and closed that differ and an overshoot in [0, 0.5], found {gripper}"
        if not self.versions or not self.language.paths:
            yield "expected at least one version and one path of a language field, found none"
        if self.language.encoding not in ("utf-8", "code points"):
            yield f"language: expected encoding utf-8 or code points, found {self.language.encoding!r}"
        for text in (self.tfds_name, *self.versions):
            if not isinstance(text, str):
                yield f"tfds_name and versions: expected text, found {text!r}"
        if not isinstance(self.keep_empty_language, bool):
            yield f"keep_empty_language: expected True or False, found {self.keep_empty_language!r}"
        if not isinstance(self.held_out, int | float) or not 0 <= self.held_out < 1:
            yield f"held_out: expected a share in [0, 1), found {self.held_out!r}"


def row_from_mapping(name: str, record: Mapping[str, Any]) -> Dataset:
    """Makes a row of plain data.

    Args:
        name: the dataset's name, and the folder's name if the record gives none.
        record: Dataset's fields, with dicts for records. `fields` is a sequence of dicts, each
            RawField's with a path: their order counts, and a config sorts the keys of a mapping.
            The embodiment is a record (see pi0_jax/embodiments) or the name of a known one.

    Raises:
        InputError: a field is unknown, missing or wrong. The message names it.
    """
    where = f"dataset row {name}"
    known = {field.name for field in dataclasses.fields(Dataset)} - {"name"}
    if unknown := sorted(record.keys() - known):
        raise InputError(
            f"{where}: field {unknown[0]!r} is unknown; expected some of {', '.join(sorted(known))}"
        )
    needed = ("versions", "embodiment", "cameras", "fields", "language")
    if missing := [field for field in needed if field not in record]:
        raise InputError(f"{where}: expected {', '.join(needed)}, {', '.join(missing)} missing")
    try:
        given = {"tfds_name": name, **record, "name": name}
        if isinstance(rule := record["standardise"] if "standardise" in record else None, Mapping):
            given["standardise"] = _recorded_rule(rule, where)
        return Dataset(
            **given
            | {
                "versions": _several(record["versions"]),
                "embodiment": _embodiment(name, record["embodiment"]),
                "cameras": {
                    camera: CameraField(**_tupled(field, "alternatives"))
                    for camera, field in record["cameras"].items()
                },
                "fields": _fields(record["fields"]),
                "grippers": {
                    dim: RecordedGripper(**gripper)
                    for dim, gripper in (record["grippers"] if "grippers" in record else {}).items()
                },
                "language": Language(**_tupled(record["language"], "paths")),
                "notes": _several(record["notes"]) if "notes" in record else (),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        # A record has other keys than its class has.
        raise InputError(f"{where}: {error}") from error


def _recorded_rule(rule: Mapping[str, str], where: str) -> Rule:
    """Returns the rule that a checkpoint stored: a stand-in with its name and hash.

    Where the dataset had no rule of its own, it is `as_recorded`.
    """
    # No rule is no rule again, since that decides how grippers were recorded.
    unruled = rule["sha256"] == source_hash(as_recorded, where)
    return as_recorded if unruled else RecordedRule(rule["rule"], rule["sha256"])


def _fields(records: Any) -> dict[str, RawField]:
    if isinstance(records, Mapping):
        raise TypeError(
            "fields: expected a sequence of records, each with its path, found a mapping, of which a config sorts the keys"
        )
    fields = [_tupled(record, "shape", "quaternions") for record in records]
    return {
        field["path"]: RawField(**{name: value for name, value in field.items() if name != "path"})
        for field in fields
    }


def _tupled(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: _several(value) if name in names else value for name, value in record.items()}


def _several(value: Any) -> tuple[Any, ...]:
    """Returns several values as a tuple, and refuses a text."""
    # If the comma in ("1.0.0",) is missing, a string is left, which is a sequence of letters too.
    if isinstance(value, str):
        raise TypeError(
            f"expected several values, found the text {value!r}; of one value a tuple is (value,)"
        )
    return tuple(value)


def _embodiment(name: str, record: Mapping[str, Any] | str) -> Embodiment:
    if isinstance(record, str):
        if record not in EMBODIMENTS:
            raise InputError(
                f"dataset row {name}: embodiment {record!r} is unknown; expected one of {', '.join(sorted(EMBODIMENTS))}"
            )
        return EMBODIMENTS[record]
    return Embodiment.from_json({"name": name, **record})


def row_version(row: Dataset) -> dict[str, Any]:
    """Returns all that decides, in a row, what an index holds, as plain data.

    Equal versions give equal indices.
    """
    turned = [
        [place, *map(float, dataclasses.astuple(gripper))]
        for place, gripper in row.recorded_grippers.items()
        if gripper != OPEN_IS_1
    ]
    return {
        "row": row.name,
        "revision": row.revision,
        "rule": source_hash(row.standardise, f"dataset row {row.name}"),
        "fields": [
            [path, list(field.shape), field.dtype, list(field.quaternions)]
            for path, field in row.fields.items()
        ],
        # Views are in the order of the columns. A camera's name and its colour order matter only
        # when an image is read.
        "views": list(row.views),
        "language": [list(row.language.paths), row.language.encoding],
        "keep_empty_language": row.keep_empty_language,
        "held_out": row.held_out,
        # An index was checked against these bounds.
        "state": [[dim.unit, dim.low, dim.high] for dim in row.embodiment.state],
        "actions": [[dim.unit, dim.kind, dim.low, dim.high] for dim in row.embodiment.actions],
        # This field was added later. It is left out where no gripper is converted, so that older
        # indices are still right.
        **({"grippers": turned} if turned else {}),
    }
