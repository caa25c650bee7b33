"""Lets autodoc read this project's docstrings: plain text, `code`, and pictures that are indented.

prose with x * y and `code`          is escaped, so that nothing in it is markup
an indented block after a blank line is a picture or code, and stays as it is
Args:, Returns:, Raises:, Attributes: go on to napoleon
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from sphinx.util.typing import stringify_annotation

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
_CODE = re.compile(r"(`[^`\n]+`)")
_MARKUP = re.compile(r"([*|\\`]|(?<=\w)_(?!\w))")
_ATTRIBUTE = re.compile(r"    (\w+):(.*)")
_QUALIFIED = re.compile(r"~?(\w+\.)+(?=\w)")
_ENUMERATOR = re.compile(r"(?<=: )([A-Z]\.)$")  # an argument that is described as "H." is no list
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
    return _ENUMERATOR.sub(r"\\\1", text)


def converted(lines: list[str]) -> list[str]:
    """Returns a docstring's lines as napoleon expects them."""
    result: list[str] = []
    in_section = in_list = False
    i = 0
    while i < len(lines):
        line = lines[i]
        indented = line.startswith(" ")
        if line and not indented:
            in_section = bool(_SECTION.match(line))
            in_list = line.startswith("- ")
        # A picture begins behind a blank line, or right behind a line that ends with a colon.
        begins = indented and (i == 0 or not lines[i - 1] or lines[i - 1].endswith(":"))
        if begins and not in_section and not in_list:
            end = i
            while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
                end += 1
            result += _block(lines[i:end])
            i = end
            continue
        result.append(escaped(line if in_section or in_list else line.strip()))
        i += 1
    return result


def _block(lines: list[str]) -> list[str]:
    """Returns a block of code, or a picture, which has no colours."""
    try:
        ast.parse(textwrap.dedent("\n".join(lines)))
        language = "python"
    except SyntaxError:
        language = "text"
    return ["", f".. code-block:: {language}", "", *lines, ""]


def with_types(lines: list[str], record: type) -> list[str]:
    """Returns a record's docstring with the types of its fields: `name (type): what it is`."""
    types = {
        name: _QUALIFIED.sub("", stringify_annotation(kind))
        for name, kind in inspect.get_annotations(record).items()
    }
    return [
        f"    {found[1]} ({types[found[1]]}):{found[2]}"
        if (found := _ATTRIBUTE.fullmatch(line)) and found[1] in types
        else line
        for line in lines
    ]


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "class" and "Attributes:" in lines:
        lines[:] = with_types(lines, obj)
    lines[:] = converted(lines)


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples document themselves as "Alias for field number 0"."""
    return True if (obj.__doc__ or "").startswith("Alias for field") else None


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon, at 500
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
