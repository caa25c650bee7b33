"""Holds one record per robot and action space, by name.

record.py says what a record holds. The other files are tables of records.
"""

from pi0_jax.embodiments.aloha import ALOHA
from pi0_jax.embodiments.arms import ARMS
from pi0_jax.embodiments.droid import DROID
from pi0_jax.embodiments.franka import FRANKA, LIBERO
from pi0_jax.embodiments.google import GOOGLE
from pi0_jax.embodiments.record import ActionDim, Embodiment, StateDim, by_name
from pi0_jax.embodiments.rtx import RTX
from pi0_jax.embodiments.simulated import METAWORLD, REACH
from pi0_jax.embodiments.widowx import WIDOWX

__all__ = ["EMBODIMENTS", "ActionDim", "Embodiment", "StateDim"]

# A new file of records is a new line here.
EMBODIMENTS = by_name(
    "embodiment", ALOHA, ARMS, DROID, FRANKA, GOOGLE, LIBERO, METAWORLD, REACH, RTX, WIDOWX
)
