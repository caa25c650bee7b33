"""The weights of a run that trained only a part of them, read leaf by leaf: trained, frozen, and adapted by LoRA (merged)."""

from collections.abc import Mapping

import numpy as np

from pi0_jax.convert.source import Leaf, Tensors
from pi0_jax.models import lora
from pi0_jax.trainable import Trainable


class Completed:
    """Named by published paths."""

    def __init__(
        self, trained: Tensors, frozen: Tensors, factors: Tensors, trainable: Trainable
    ) -> None:
        """`trained`, `frozen`, `factors`: where each is read from; `factors` has <path>/a and <path>/b."""
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
        return self._adapted(name.rpartition("/")[0])

    def _adapted(self, name: str) -> bool:
        return (
            lora.find(self._trainable.lora, name) is not None and f"{name}/a" in self._factors.infos
        )

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """The array, or its `entry` along the first axis."""
        w = (self._trained if self._trainable.trains(name) else self._frozen).read(name, entry)
        rule = lora.find(self._trainable.lora, name)
        if rule is None or not self._adapted(name):
            return w
        a, b = (self._factors.read(f"{name}/{part}", entry) for part in "ab")
        subscripts = lora.product(name)
        if entry is not None:
            subscripts = subscripts.replace("L", "")
        return w.astype(np.float32) + np.float32(rule.alpha / rule.rank) * np.einsum(
            subscripts, a, b, optimize=True
        )
