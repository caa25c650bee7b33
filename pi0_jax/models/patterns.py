"""Regular expressions over parameter paths are refused if matching one could take for ever.

Python's `re` tries one way of matching after the other, and (a+)+b has exponentially many in a text
of many a. A checkpoint carries expressions (frozen, lora), and anybody may have written it. So the
number of ways of an expression is counted before it is used.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

# It is the only parser of these expressions. It has no types; tests hold what is used of it.
from re import _constants as codes  # type: ignore[attr-defined] # isort: skip
from re import _parser as parser  # type: ignore[attr-defined] # isort: skip

# All expressions of a field together may have so many ways. All paths are then searched in seconds.
MOST_WAYS = 200_000
_LONGEST = 80  # characters of a path; the published ones have up to 75
_TOO_MANY = (
    f"expected regular expressions that can match a path in at most {MOST_WAYS:,} ways, found more:"
    " too many *, + or ?, or one within another"
)
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)


def mistakes(patterns: Sequence[str]) -> list[str | None]:
    """Says what is wrong with each pattern.

    Returns:
        For each pattern a text to be read after its name; None if the pattern can be used.
    """
    found: list[str | None] = []
    total = 0.0
    for pattern in patterns:
        try:
            re.compile(pattern)
            total += _ways(parser.parse(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            found.append(f"expected a regular expression, found: {error}")
            continue
        found.append(None if total <= MOST_WAYS else _TOO_MANY)
    return found


def _ways(parts: Any) -> int | float:
    """Returns an upper bound of the ways to try a sequence of parsed parts at a path's place."""
    ways: float = 1
    wide = 0
    for code, value in parts:
        if code not in _REPEATS:
            ways *= _ways_of(code, value)
            continue
        least, most, body = value
        inner = _ways(body)  # once: repeats within repeats would double the work at each
        if inner == 1 and most >= _LONGEST:
            wide += 1
        else:
            ways *= _repeated(inner, least, max(least, min(int(most), _LONGEST)))
    # The repeats of .*a.*b.* share the characters of one path. So n wide repeats have as many ways
    # as _LONGEST characters can be divided among them: (_LONGEST + n) over n.
    return ways * math.comb(_LONGEST + wide, wide)


def _repeated(inner: int | float, least: int, most: int) -> int | float:
    """Returns the ways to try `least` to `most` repetitions of a body that has `inner` ways."""
    if inner == 1:
        return most - least + 1
    # Each repetition has as many ways as the body. Beyond the limit the number does not matter.
    if most * math.log(inner) > 100:
        return math.inf
    return sum(inner**count for count in range(least, most + 1))


def _ways_of(code: Any, value: Any) -> int | float:
    """Returns an upper bound of the ways to try one parsed part that is no repeat."""
    if code is codes.BRANCH:
        return sum(_ways(branch) for branch in value[1])
    if code is codes.SUBPATTERN:
        return _ways(value[-1])
    if code is codes.ATOMIC_GROUP:
        return _ways(value)
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return _ways(value[1])
    if code is codes.GROUPREF_EXISTS:
        return _ways(value[1]) + (_ways(value[2]) if value[2] else 1)
    return 1
