"""Hashes the source of a rule.

Indices and checkpoints keep the hash of a function, so that a changed rule is noticed.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NoReturn

import numpy as np

from pi0_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class RecordedRule:
    """Holds a rule of which a checkpoint kept name and hash.

    It is enough to open an index, but not to build one.
    """

    name: str
    sha256: str

    def __call__(self, columns: Any) -> NoReturn:
        raise InputError(
            f"rule {self.name} is known by its hash alone; build the index from the config file that defines it"
        )


def record_rule(rule: FunctionType, where: str) -> dict[str, str]:
    """Returns what a checkpoint keeps of a rule: its name and its hash."""
    return {"rule": rule.__qualname__, "sha256": source_hash(rule, where)}


def source_hash(rule: Any, where: str) -> str:
    """Returns the SHA-256 of a function's source, of the functions that it names, and their data.

    The data are plain: numbers, strings, arrays, and tuples, lists, sets and dicts of these. They
    are globals, values that a surrounding function bound, and default arguments. What is reached
    through a module or an object (`lab.scale(x)`) is not followed: import such a function by its
    name.

    Args:
        rule: a plain function, or a RecordedRule.
        where: what the message begins with.

    Raises:
        InputError: the rule is no plain function, or it has no source file.
    """
    if isinstance(rule, RecordedRule):
        return rule.sha256
    if not isinstance(rule, FunctionType):
        raise InputError(f"{where}: expected a plain function as its rule, found {rule!r}")
    try:
        source = "\n".join(_sources(rule, []))
    except OSError as error:
        raise InputError(f"{where}: expected a rule defined in a file, found {rule!r}") from error
    return hashlib.sha256(source.encode()).hexdigest()


def _sources(function: FunctionType, seen: list[FunctionType]) -> list[str]:
    seen.append(function)
    parts = [inspect.getsource(function)]
    for name, value in _values(function):
        parts += _described(name, value, seen)
    return parts


def _described(name: str, value: Any, seen: list[FunctionType]) -> list[str]:
    """Returns the sources of a function, the text of plain data, and nothing of anything else."""
    match value:
        case FunctionType():
            return [] if value in seen else _sources(value, seen)
        case int() | float() | complex() | str() | bytes():
            return [f"{name} = {value!r}"]
        case np.ndarray() | np.generic():
            return [f"{name} = {value.dtype}{list(value.shape)} {np.asarray(value).tolist()!r}"]
        case Mapping():
            items = [(f"{name}[{key!r}]", item) for key, item in value.items()]
        case set() | frozenset():
            return [f"{name} = {sorted(map(repr, value))}"]
        case tuple() | list():
            items = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
        case _:
            return []
    return [part for item in items for part in _described(*item, seen)]


def _values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields globals, values bound by a surrounding function and default arguments, by name."""
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents
    yield "defaults", function.__defaults__ or ()
    yield "keyword defaults", function.__kwdefaults__ or {}


def _names(code: CodeType) -> set[str]:
    """Returns the global names in a function and in its inner functions."""
    # Python versions differ in whether comprehensions are functions.
    return set(code.co_names).union(
        *(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType))
    )
