"""Defines records with typed and documented fields, of which a config is made.

A record is a frozen dataclass. Each field says once, where it stands, its type, default, range and
meaning:

    steps: int = field(30_000, "Optimizer steps of the run.", positive=True)

`read` makes a record of plain data and names every mistake. `explain` prints what the fields mean.
"""

import dataclasses
import difflib
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pi0_jax.errors import InputError

Record = TypeVar("Record")
# A rule about several fields, with their names. It takes their values and returns its complaints,
# each of which begins with a field's name.
Check = tuple[Callable[..., Iterable[str]], tuple[str, ...]]
_WIDTH, _INDENT = 100, 24


def field(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    factory: Any = dataclasses.MISSING,
    section: str = "",
    positive: bool = False,
    at_least: float | None = None,
    below: float | None = None,
    before: Any = dataclasses.MISSING,
    free: bool = False,
    per_process: bool = False,
) -> Any:
    """Declares a field of a record.

    Args:
        default: the value where nothing is stated. A field without default and factory must be
            stated.
        doc: what the field means, with its unit; one or more whole sentences.
        factory: makes the default instead, where it is mutable.
        section: the title of a group of fields, of which this one is the first.
        positive: a number must be above 0.
        at_least: a number must be at least this.
        below: a number must be below this. It goes with `at_least`.
        before: the value for records that were stored before the field existed. It does what the
            program did then. By default it is `default`.
        free: whether a run may be resumed with another value, because the field changes no result.
        per_process: whether the processes of one run may have different values.
    """
    metadata = dict(
        doc=doc, section=section, positive=positive, at_least=at_least, below=below, before=before, free=free, per_process=per_process
    )  # fmt: skip
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


def read(
    schema: type[Record],
    values: Any,
    where: str,
    *,
    checks: Sequence[Check] = (),
    stored: bool = False,
) -> Record:
    """Makes a record of plain data, such as a config page or JSON.

    Args:
        schema: the record's class.
        values: a mapping from field names to values. Lists may stand for tuples, and mappings for
            records.
        where: what the mapping is called in error messages.
        checks: rules about several fields. A rule runs if all its fields are right by themselves.
        stored: whether the data may be of an older version. A field that it lacks then takes its
            `before`.

    Raises:
        InputError: it has one argument for each mistake: a field that is unknown, missing, of
            another type or out of its range, or a complaint of a check.
    """
    mistakes: list[str] = []
    good = _read_fields(schema, values, where, mistakes, stored)
    for check, names in checks:
        if all(name in good for name in names):
            mistakes += [f"{where}.{text}" for text in check(*(good[name] for name in names))]
    if mistakes:
        raise InputError(*mistakes)
    return schema(**good)


def defaults(schema: Any) -> dict[str, Any]:
    """Returns the default of every field, as plain data.

    It is None where a field has no default and must be stated.
    """
    return {
        entry.name: None if _required(entry) else _plain(_default(entry))
        for entry in dataclasses.fields(schema)
    }


def names(schema: Any, mark: Literal["free", "per_process"] | None = None) -> frozenset[str]:
    """Returns the names of a record's fields, or of those that are declared with `mark`."""
    entries = dataclasses.fields(schema)
    return frozenset(entry.name for entry in entries if mark is None or entry.metadata[mark])


def explain(schema: Any) -> str:
    """Describes all fields for people, in 100 columns: name, type, default, meaning, by section."""
    return "\n".join(_lines(schema, ""))


def sections(schema: Any) -> Iterator[tuple[str, list[str]]]:
    """Yields the title of each group of a record's fields, with the names of its fields."""
    title = ""
    group: list[str] = []
    for entry in dataclasses.fields(schema):
        if entry.metadata["section"]:
            if group:
                yield title, group
            title, group = entry.metadata["section"], []
        group.append(entry.name)
    yield title, group


def _lines(schema: Any, prefix: str) -> Iterator[str]:
    """Yields the lines of `explain`, with `prefix` before each name."""
    for entry in dataclasses.fields(schema):
        if section := entry.metadata.get("section"):
            yield f"\n{section}"
        name = prefix + entry.name
        if _is_record(entry.type):
            yield from _lines(entry.type, f"{name}.")
            continue
        default = ", must be stated" if _required(entry) else f" = {_default(entry)!r}"
        yield f"  {name:<{_INDENT - 2}}{_kind_name(entry.type)}{default}"
        doc = textwrap.wrap(entry.metadata.get("doc", ""), _WIDTH - _INDENT)
        yield from (" " * _INDENT + line for line in doc)


def _is_record(kind: Any) -> bool:
    """Returns whether this is a record, or a class of records."""
    return dataclasses.is_dataclass(kind)


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is types.UnionType:
        return " or ".join(_kind_name(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"tuple[{', '.join(_kind_name(part) for part in typing.get_args(kind))}]"
    if _is_record(kind):
        return f"dict({', '.join(entry.name for entry in dataclasses.fields(kind))})"
    if typing.get_origin(kind) is Mapping:
        return "dict"
    return "..." if kind is Ellipsis else kind.__name__


def _required(entry: Any) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _default(entry: Any) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if _is_record(value) else value


def _read_fields(
    schema: Any, values: Any, where: str, mistakes: list[str], stored: bool
) -> dict[str, Any]:
    """Returns the fields that are right. What is wrong with the others is added to `mistakes`."""
    entries = {entry.name: entry for entry in dataclasses.fields(schema)}
    if not isinstance(values, Mapping):
        mistakes.append(f"{where} is {values!r}; expected fields {', '.join(entries)}")
        return {}
    for name in values:
        if name not in entries:
            mistakes.append(f"{where}.{name} is unknown{_hint(str(name), entries, stored)}")
    good, missing = {}, []
    for name, entry in entries.items():
        if name in values and not (values[name] is None and _required(entry)):
            count = len(mistakes)
            value = _cast(entry.type, values[name], f"{where}.{name}", mistakes, stored)
            if len(mistakes) == count:
                mistakes += _out_of_range(value, entry.metadata, f"{where}.{name}")
            if len(mistakes) == count:
                good[name] = value
        elif _required(entry):
            missing.append(name)
        else:
            before = entry.metadata.get("before", dataclasses.MISSING)
            good[name] = before if stored and before is not dataclasses.MISSING else _default(entry)
    if missing:
        mistakes.append(f"{where} lacks {', '.join(missing)}")
    return good


def _hint(name: str, known: Iterable[str], stored: bool) -> str:
    """Returns what may explain an unknown name: a newer version, or a name that is close to it."""
    if stored:
        return "; a newer version of pi0_jax may have written it"
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _out_of_range(value: Any, metadata: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yields a mistake for each bound of the field that the value violates."""
    positive, low, high = (metadata.get(bound) for bound in ("positive", "at_least", "below"))
    if positive and value <= 0:
        yield f"{where} is {value}; expected a positive number"
    if high is not None and not low <= value < high:
        yield f"{where} is {value}; expected a number in [{low}, {high})"
    elif low is not None and value < low:
        yield f"{where} is {value}; expected a number of at least {low}"


def _cast(kind: Any, value: Any, where: str, mistakes: list[str], stored: bool) -> Any:
    """Returns the value in the field's type.

    If the value is not of that type, that is added to `mistakes`, and the result means nothing.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        name, record = parts
        if isinstance(value, name | record | Mapping):
            kind = name if isinstance(value, name) else record
            return _cast(kind, value, where, mistakes, stored)
    if _is_record(kind):
        if isinstance(value, kind):
            return value
        count = len(mistakes)
        good = _read_fields(kind, value, where, mistakes, stored)
        return kind(**good) if len(mistakes) == count else None
    if origin is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(value):
            return tuple(
                _cast(kinds[i], item, f"{where}[{i}]", mistakes, stored)
                for i, item in enumerate(value)
            )
        mistakes.append(f"{where} is {value!r}; expected {len(kinds)} entries")
        return None
    if origin is Mapping and isinstance(value, Mapping):
        return dict(value)
    if origin is Literal and value in parts:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # In Python a bool is an int. Here it is none.
    if origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        if kind is float and not math.isfinite(value):
            mistakes.append(f"{where} is {value!r}; expected a finite number")
        return value
    mistakes.append(f"{where} is {value!r}; expected {_expected(kind)}")
    return None


def _expected(kind: Any) -> str:
    """Returns what values a type has, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return " or ".join(_expected(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if _is_record(kind):
        return f"fields {', '.join(entry.name for entry in dataclasses.fields(kind))}"
    return {tuple: "a tuple", Mapping: "a mapping"}[origin] if origin else kind.__name__
