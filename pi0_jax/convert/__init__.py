"""Checkpoints in from everyone, out to PyTorch. `convert.open(path)` gives the parameters of any of them under our names, read lazily."""

from pi0_jax.convert.formats import DEFAULTS, OUTPUTS, Options, convert
from pi0_jax.convert.formats import open_checkpoint as open
from pi0_jax.convert.source import Source

__all__ = ["DEFAULTS", "OUTPUTS", "Options", "Source", "convert", "open"]
