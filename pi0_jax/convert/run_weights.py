"""The weights of a run that trained only a part of them are read leaf by leaf.

Trained leaves, frozen leaves and leaves adapted by LoRA (merged) make one tree.
"""

from collections.abc import Mapping

import numpy as np

from pi0_jax.convert.source import Leaf, Tensors
from pi0_jax.models import lora
from pi0_jax.models.trainable import Trainable


class Completed:
    """Gives the weights of such a run by their published paths."""

    def __init__(
        self, trained: Tensors, frozen: Tensors, factors: Tensors, trainable: Trainable
    ) -> None:
        """Joins the three groups of arrays.

        Args:
            trained: gives the leaves that are trained.
            frozen: gives the leaves that are not.
            factors: gives LoRA's factors, named <path>/a and <path>/b.
            trainable: says which leaves are trained.
        """
        self._trained, self._frozen, self._factors, self._trainable = (
            trained,
            frozen,
            factors,
            trainable,
        )
        own = {
            name: leaf
            for name, leaf in trained.infos.items()
            if trainable.trains(name) and not self._is_factor(name)
        }
        rest = {name: leaf for name, leaf in frozen.infos.items() if not trainable.trains(name)}
        self.infos: Mapping[str, Leaf] = own | {
            name: leaf._replace(dtype=np.dtype(np.float32)) if self._adapted(name) else leaf
            for name, leaf in rest.items()
        }

    def _is_factor(self, name: str) -> bool:
        """Returns whether a name is that of a LoRA factor."""
        return self._adapted(name.rpartition("/")[0])

    def _adapted(self, name: str) -> bool:
        """Returns whether a leaf has LoRA factors."""
        return (
            lora.find(self._trainable.lora, name) is not None and f"{name}/a" in self._factors.infos
        )

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads an array, or its `entry` along the first axis."""
        w = (self._trained if self._trainable.trains(name) else self._frozen).read(name, entry)
        rule = lora.find(self._trainable.lora, name)
        if rule is None or not self._adapted(name):
            return w
        a, b = (self._factors.read(f"{name}/{part}", entry) for part in "ab")
        subscripts = lora.product(name)
        # One entry of a stack has no layer axis.
        if entry is not None:
            subscripts = subscripts.replace("L", "")
        return w.astype(np.float32) + np.float32(rule.alpha / rule.rank) * np.einsum(
            subscripts, a, b, optimize=True
        )
