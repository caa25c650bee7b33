"""Writes docs/formats.md: formats, rules and measured errors.

python -m launch.formats [--lerobot=DIR]            needs the extra torch
"""

from pathlib import Path

from absl import flags

from pi0_jax import convert, verify
from pi0_jax.convert import page, parity

from . import app

_OUTPUT = flags.DEFINE_string("output", "docs/formats.md", "Markdown file to write.")
_LEROBOT = flags.DEFINE_string(
    "lerobot", None, "A full-size float32 LeRobot directory, to be run by LeRobot and by us."
)


@app.command
def main() -> None:
    measured = {"known-answer vectors of openpi (JAX), toy size": _vectors()}
    measured["transformers' PaliGemma, toy size"] = parity.compare_with_transformers()
    if _LEROBOT.value is not None:
        measured["LeRobot's π0, full size, random weights"] = parity.compare_with_lerobot(
            convert.open(_LEROBOT.value), _LEROBOT.value
        )
    Path(_OUTPUT.value).write_text(page.page(measured, parity.environment()), encoding="utf-8")


def _vectors() -> list[parity.Comparison]:
    comparisons = verify.compare(verify.load_vectors(verify.SHIPPED_VECTORS), "float32")
    return [
        parity.Comparison(c.name, c.absolute, c.relative)
        for c in comparisons
        if not c.name.startswith("grad_norm/")
    ]


if __name__ == "__main__":
    main()
