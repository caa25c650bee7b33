"""Renews the tables of docs/formats.md: our leaves, each format's tensors, and measured errors.

python -m launch.formats [--lerobot=DIR]            needs the extra torch
"""

from pathlib import Path

from absl import flags

from pi0_jax import convert, parity, verify
from pi0_jax.parity import Comparison, lerobot, paligemma

from . import app, formats_page

_OUTPUT = flags.DEFINE_string("output", "docs/formats.md", "The page, which is there.")
_LEROBOT = flags.DEFINE_string(
    "lerobot", None, "A full-size float32 LeRobot directory, to be run by LeRobot and by us."
)


@app.command
def main() -> None:
    vectors = verify.compare(verify.load_vectors(verify.SHIPPED_VECTORS), "float32")
    measured = [
        (
            "known-answer vectors of openpi (JAX), toy size",
            Comparison(c.name, c.absolute, c.relative),
        )
        for c in vectors
        if not c.name.startswith("grad_norm/")
    ]
    measured += [
        ("transformers' PaliGemma, toy size", c) for c in paligemma.compare_with_transformers()
    ]
    if _LEROBOT.value is not None:
        source = convert.open(_LEROBOT.value)
        c = lerobot.compare_with_lerobot(source, _LEROBOT.value)
        measured.append(("LeRobot's π0, full size, random weights", c))
    page = Path(_OUTPUT.value)
    text = page.read_text(encoding="utf-8")
    environment = parity.environment()
    page.write_text(formats_page.renewed(text, measured, environment), encoding="utf-8")


if __name__ == "__main__":
    main()
