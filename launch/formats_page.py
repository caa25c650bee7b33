"""The tables of docs/formats.md: our leaves, each format's tensors, and measured errors.

The page's sentences are written in the page itself. A table stands behind its heading's text.
"""

import re
from collections.abc import Iterable, Sequence

from pi0_jax.convert import lerobot, openpi, ours, paligemma
from pi0_jax.convert.rules import Rule
from pi0_jax.convert.tree import AXES, NAMES
from pi0_jax.parity import Comparison

# The first word of a heading -> the rules that its table shows.
RULES = {
    "`ours`:": ours.RULES,
    "`openpi_jax`": openpi.JAX_RULES,
    "`openpi_pytorch`": openpi.TORCH_RULES,
    "`lerobot`:": lerobot.RULES,
    "`big_vision`:": paligemma.NPZ_RULES,
    "`hugging_face`:": paligemma.HUGGING_FACE_RULES[0],
}


def renewed(
    page: str, measured: Sequence[tuple[str, Comparison]] = (), environment: str = ""
) -> str:
    """Returns the page with new tables.

    Args:
        page: the page as it is.
        measured: what was compared with what, and the comparison; nothing leaves what is there.
        environment: what the comparisons ran on, in a sentence.
    """
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return "".join(_section(text, measured, environment) for text in sections).rstrip() + "\n"


def _section(text: str, measured: Sequence[tuple[str, Comparison]], environment: str) -> str:
    """Returns a section with its new table."""
    words = text.split()
    if words[1] == "Measured" and measured:
        rows = ((what, c.output, f"{c.absolute:.1e}", f"{c.relative:.1e}") for what, c in measured)
        text = f"## Measured\n\n{environment}\n\n"
        return text + _table("what | output | max abs error | relative to the largest", rows)
    before, _, _ = text.partition("\n\n| ")
    if words[1:3] == ["Our", "leaves"]:
        letters = ", ".join(f"{letter} {name}" for letter, name in NAMES.items())
        before = f"## Our leaves\n\nAxes, by the names that `--sizes` knows: {letters}."
        leaves = [(f"`{path}`", axes) for path, axes in AXES.items()]
        return f"{before}\n\n{_table('leaf | axes', leaves)}"
    if words[1] in RULES:
        tensors = map(_row, RULES[words[1]])
        return f"{before}\n\n{_table('tensor | our leaf | layout', tensors)}"
    return text


def _row(rule: Rule) -> tuple[str, str, str]:
    """Returns what the page says of a rule."""
    index = f"[{','.join(rule.place)}]" if rule.place else ""
    where = f"`{rule.ours}{index}`" if rule.ours else "none: unused"
    return f"`{rule.foreign}`", f"{where}{', once more' * (rule.role == 'copy')}", rule.layout


def _table(heads: str, rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table and an empty line."""
    lines = [f"| {heads} |", "|---" * len(heads.split(" | ")) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n\n"
