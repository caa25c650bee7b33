"""This package converts checkpoints of every format.

The formats are ours, openpi's (JAX and PyTorch), LeRobot's, and those of PaliGemma's weights.

    convert.run("runs/reach/train", "reach_lerobot", to="lerobot")
    convert.run("OPENPI", "policies/pi0", to="ours",
                options=convert.Options(robot="droid", embodiment="droid",
                tokenizer="paligemma.model"))

`convert.open(path)` gives the parameters of any of them under our names, read lazily.
"""

from pi0_jax.convert.formats import DEFAULTS, OUTPUTS, Options, Report
from pi0_jax.convert.formats import convert as run
from pi0_jax.convert.formats import open_checkpoint as open
from pi0_jax.convert.source import Source

__all__ = ["DEFAULTS", "OUTPUTS", "Options", "Report", "Source", "open", "run"]
