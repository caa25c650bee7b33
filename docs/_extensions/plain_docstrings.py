"""Lets autodoc read this project's docstrings: plain text, `code`, and pictures that are indented.

prose with x * y and `code`          is escaped, so that nothing in it is markup
an indented block after a blank line is a picture or code, and stays as it is
Args:, Returns:, Raises:, Attributes: go on to napoleon
"""

import re
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
_CODE = re.compile(r"(`[^`\n]+`)")
_MARKUP = re.compile(r"([*|\\`]|(?<=\w)_(?!\w))")
_WORD = re.compile(r"\w")


def escaped(line: str) -> str:
    """Returns a line of prose as reStructuredText: `code` as ``code``, all else literally."""
    parts = _CODE.split(line)  # prose and code take turns
    text = ""
    for i, part in enumerate(parts):
        if i % 2:
            joined = _WORD.match(parts[i + 1])  # `pack`ed
            text += f"`{part}`" + ("\\ " if joined else "")
        else:
            text += _MARKUP.sub(r"\\\1", part)
    return text


def converted(lines: list[str]) -> list[str]:
    """Returns a docstring's lines as napoleon expects them."""
    result: list[str] = []
    in_section = in_picture = in_list = False
    for i, line in enumerate(lines):
        indented = line.startswith(" ")
        if line and not indented:
            in_section = bool(_SECTION.match(line))
            in_list = line.startswith("- ")
        if in_section or in_list or not line:
            result.append(escaped(line))
            continue
        # A picture begins behind a blank line, or right behind a line that ends with a colon.
        begins = indented and (i == 0 or not lines[i - 1] or lines[i - 1].endswith(":"))
        if begins and not in_picture:
            result += ["", "::", ""]
        elif in_picture and not indented and lines[i - 1]:
            result.append("")
        in_picture = indented and (in_picture or begins)
        result.append(line if in_picture else escaped(line.strip()))
    return result


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples document themselves as "Alias for field number 0"."""
    return True if (obj.__doc__ or "").startswith("Alias for field") else None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon, at 500
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
