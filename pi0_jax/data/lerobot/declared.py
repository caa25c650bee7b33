"""Reads meta/info.json: the version of a LeRobot dataset, its rate, and what its features are."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pi0_jax.errors import InputError, expecting

VERSIONS = ("v2.1", "v3.0")
CAMERA_DTYPES = ("image", "video")
NUMBER_DTYPES = (
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"
)  # fmt: skip
TEXT_DTYPE = "string"
# What LeRobot adds to every frame: numbers without a dimension.
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
# What the import adds to every step.
ADDED = (("is_first",), ("is_last",), ("language_instruction",))


@dataclasses.dataclass(frozen=True)
class Feature:
    """Describes one feature of every frame.

    Attributes:
        name: LeRobot's name for it, such as "observation.state".
        dtype: one of NUMBER_DTYPES, "string", "image" or "video".
        shape: of one frame's value; () for the counters. A camera's is (height, width, 3).
        names: one name for each number, or () where info.json names none.
        units: one unit for each number, or () where info.json says none, as is usual.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def is_camera(self) -> bool:
        """Returns whether its values are images."""
        return self.dtype in CAMERA_DTYPES

    @property
    def stored_dtype(self) -> str:
        """Returns the dtype of its numbers in RLDS, which holds no float64."""
        return "float32" if self.dtype == "float64" else self.dtype

    @property
    def path(self) -> tuple[str, ...]:
        """Returns where its values are in a step, as keys of nested dicts."""
        for prefix in (("observation", "images"), ("observation",)):
            start = ".".join(prefix) + "."
            if self.name.startswith(start):
                return (*prefix, self.name.removeprefix(start).replace(".", "_"))
        return (self.name.replace(".", "_"),)

    @property
    def field(self) -> str:
        """Returns its path in an RLDS dataset, such as "steps/observation/state"."""
        return "/".join(("steps", *self.path))


@dataclasses.dataclass(frozen=True)
class Declared:
    """Holds what meta/info.json says.

    Attributes:
        version: "v2.1" or "v3.0".
        fps: frames per second.
        features: those that are imported, in their order.
        info: the whole file.
    """

    version: str
    fps: float
    features: tuple[Feature, ...]
    info: Mapping[str, Any]

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """Returns the features that are images."""
        return tuple(feature for feature in self.features if feature.is_camera)


def read_declared(folder: Path, without: Sequence[str] = ()) -> Declared:
    """Reads meta/info.json of the dataset in `folder`.

    Args:
        folder: the LeRobot dataset.
        without: features that are left out.

    Raises:
        InputError: the file is missing or no JSON, its version is not known, or a feature cannot be
            imported. All mistakes of features are reported together.
    """
    file = folder / "meta" / "info.json"
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder}: expected a LeRobot dataset with a readable meta/info.json, found: {error}"
        ) from error
    with expecting("a JSON object with codebase_version, fps and features", str(file)):
        info = json.loads(text)
        version, fps, given = info["codebase_version"], info["fps"], dict(info["features"])
        _check_version(version, file)
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
            raise InputError(f"{file}: fps: expected frames per second above 0, found {fps!r}")
    if missing := [name for name in COUNTERS if name not in given]:
        raise InputError(f"{file}: features: expected {', '.join(COUNTERS)}, {missing[0]} missing")
    if unknown := [name for name in without if name not in given or name in COUNTERS]:
        raise InputError(
            f"left out: {unknown[0]!r} is no feature that can be left out; expected some of "
            f"{', '.join(name for name in given if name not in COUNTERS)}"
        )
    features, problems = [], []
    for name in (name for name in given if name not in without):
        try:
            features.append(_feature(name, given[name], f"{file}: feature {name}"))
        except InputError as error:
            problems.append(str(error))
    problems += [f"{file}: {problem}" for problem in _collisions(features)]
    if problems:
        raise InputError(*problems)
    return Declared(version, float(fps), tuple(features), info)


def _check_version(version: Any, file: Path) -> None:
    if version in VERSIONS:
        return
    numbers = str(version).removeprefix("v").split(".")
    known = f"expected LeRobotDataset {' or '.join(VERSIONS)}"
    if not all(number.isdecimal() for number in numbers):
        raise InputError(f"{file}: codebase_version: {known}, found {version!r}")
    newest = tuple(map(int, VERSIONS[-1].removeprefix("v").split(".")))
    newer = tuple(map(int, numbers)) > newest
    advice = (
        "which is newer than what is known here"
        if newer
        else "which an older LeRobot wrote: convert it with LeRobot's own converters first"
    )
    raise InputError(f"{file}: codebase_version: {known}, found {version}, {advice}")


def _feature(name: str, record: Any, where: str) -> Feature:
    """Reads one feature of info.json."""
    with expecting("a record with dtype, shape and names", where):
        dtype, shape = record["dtype"], tuple(record["shape"])
        names = record["names"] if "names" in record else None
        units = record["units"] if "units" in record else None
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise InputError(f"{where}: shape: expected sizes of 1 or more, found {list(shape)}")
    leave = f"or leave it out with --without={name}"
    if not name or "/" in name:
        raise InputError(f"{where}: expected a name without a slash, {leave}")
    if name in COUNTERS:
        if dtype not in NUMBER_DTYPES:
            raise InputError(f"{where}: expected dtype {', '.join(NUMBER_DTYPES)}, found {dtype!r}")
        return Feature(name, dtype, ())
    if dtype in CAMERA_DTYPES:
        return Feature(name, dtype, _camera_shape(record, shape, where, leave))
    if dtype == TEXT_DTYPE and shape in ((), (1,)):
        return Feature(name, dtype, ())
    if dtype not in NUMBER_DTYPES:
        kinds = ", ".join((*NUMBER_DTYPES, "string of shape [1]", *CAMERA_DTYPES))
        raise InputError(
            f"{where}: expected dtype {kinds}, found {dtype!r} of shape {list(shape)}, {leave}"
        )
    return Feature(name, dtype, shape, *_names_and_units(names, units, shape, where))


def _camera_shape(
    record: Mapping[str, Any], shape: tuple[int, ...], where: str, leave: str
) -> tuple[int, ...]:
    """Returns (height, width, 3) of a camera, whose shape may have the channels first."""
    details = record["info"] if "info" in record and isinstance(record["info"], dict) else {}
    depth = any(key.endswith("is_depth_map") and details[key] for key in details)
    if depth or len(shape) != 3 or 3 not in (shape[0], shape[2]):
        found = "a depth map" if depth else f"shape {list(shape)}"
        raise InputError(
            f"{where}: expected images of height, width and three channels, found {found}, {leave}"
        )
    return shape if shape[2] == 3 else (*shape[1:], 3)


def _names_and_units(
    names: Any, units: Any, shape: tuple[int, ...], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns a name and a unit for each number, or () where there are none.

    As many names as there are axes name the axes, such as ["motors"], and say nothing of numbers.
    """
    size, found = math.prod(shape), []
    for what, given in (("names", names), ("units", units)):
        texts = tuple(_texts(given, f"{where}: {what}"))
        if len(texts) not in (0, size, len(shape)):
            raise InputError(
                f"{where}: {what}: expected {size} for its shape {list(shape)}, found {len(texts)}: {', '.join(texts)}"
            )
        found.append(texts if len(texts) == size else ())
    repeated = [name for name in found[0] if found[0].count(name) > 1]
    if repeated:
        raise InputError(
            f"{where}: names: expected names that differ, found {repeated[0]!r} several times"
        )
    return found[0], found[1]


def _texts(given: Any, where: str) -> Iterator[str]:
    """Yields the names of a list, of lists in it, of {"motors": [...]} or of {"x": 0, "y": 1}."""
    if given is None:
        return
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping) and all(
        isinstance(value, int) and not isinstance(value, bool) for value in given.values()
    ):
        if sorted(given.values()) != list(range(len(given))):
            raise InputError(
                f"{where}: expected the places 0 to {len(given) - 1} once each, found {dict(given)}"
            )
        yield from sorted(given, key=given.__getitem__)
    elif isinstance(given, Mapping | list):
        for child in given.values() if isinstance(given, Mapping) else given:
            yield from _texts(child, where)
    else:
        raise InputError(f"{where}: expected texts, found {given!r}")


def _collisions(features: Sequence[Feature]) -> Iterator[str]:
    """Yields which features would lie at the same place of a step, or within each other."""
    taken: dict[tuple[str, ...], str] = {path: "what the import adds" for path in ADDED}
    for feature in features:
        for path, other in taken.items():
            shorter = min(len(path), len(feature.path))
            if path[:shorter] == feature.path[:shorter]:
                yield (
                    f"feature {feature.name}: expected a name of its own in RLDS, found {feature.field} taken by {other};"
                    f" leave one out with --without={feature.name}"
                )
        taken[feature.path] = feature.name
