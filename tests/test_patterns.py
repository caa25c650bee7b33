"""Regular expressions that a checkpoint brings cannot make its reader hang."""

import re
import time

import pytest

from pi0_jax.convert.tree import AXES
from pi0_jax.models.patterns import mistakes

USUAL = ["PaliGemma/img/", r"llm/layers/(attn|mlp)_1/", ".*attn.*einsum.*w$", r"(?i)bias|scale", r"_\d{1,2}/", "^(?!Pali)"]  # fmt: skip


def test_usual_ones_are_taken():
    assert mistakes(USUAL) == [None] * len(USUAL)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*b", "((ab)*)*$", "(x+x+)+y", "a?" * 30 + "a" * 30, "(?:.{0,50}){0,50}!", ".*" * 6 + "!", "(?=(a+)+b)",
     "(" * 40 + "a" + ")*" * 40],
)  # fmt: skip
def test_one_that_takes_for_ever_is_refused_without_being_tried(pattern):
    (found,) = mistakes([pattern])
    assert "regular expressions that can match a path in at most" in found


@pytest.mark.parametrize("pattern", ["(", "*", "(" * 5000 + ")" * 5000])
def test_what_is_no_expression(pattern):
    assert "expected a regular expression, found: " in mistakes([pattern])[0]


def test_many_that_are_allowed_alone_are_not_together():
    costly = ".?" * 16 + "!"
    found = mistakes([costly] * 4)
    assert found[0] is None and found[3] is not None
    start = time.perf_counter()
    assert not any(re.search(costly, path) for path in AXES)
    assert time.perf_counter() - start < 60
