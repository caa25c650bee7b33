"""A rule's source, hashed: what is kept of a function in indices and checkpoints, so that a changed rule is seen."""

import hashlib
import inspect
from types import CodeType, FunctionType
from typing import Any, NamedTuple, NoReturn

from pi0_jax.errors import InputError


class RecordedRule(NamedTuple):
    """A rule of which a checkpoint kept name and hash: enough to open an index, not to build one."""

    name: str
    sha256: str

    def __call__(self, columns: Any) -> NoReturn:
        raise InputError(f"rule {self.name} is known by its hash alone; build the index from the config file that defines it")


def record_rule(rule: FunctionType, where: str) -> dict[str, str]:
    return {"rule": rule.__qualname__, "sha256": source_hash(rule, where)}


def source_hash(rule: Any, where: str) -> str:
    """SHA-256 of the sources of a function and of the functions that it names, and of its constants.

    Raises InputError, beginning with `where`: not a plain function, or one without a source file.
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
    for name in sorted(_names(function.__code__)):
        value = function.__globals__[name] if name in function.__globals__ else None
        if isinstance(value, FunctionType) and value not in seen:
            parts += _sources(value, seen)
        elif isinstance(value, int | float | str | tuple):
            parts.append(f"{name} = {value!r}")
    return parts


def _names(code: CodeType) -> set[str]:
    """Global names in a function, inner functions included: Python versions differ in whether comprehensions are."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
