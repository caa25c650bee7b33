"""LoRA leaves of openpi's JAX checkpoints are merged into the weights that they adapt.

The merged weight is w + scale * a b, where a b is a product over the last two axes.

    attn/q_einsum/w   attn/q_einsum/lora_a   attn/q_einsum/lora_b
    mlp/linear        mlp/linear_lora_a      mlp/linear_lora_b
"""

from collections.abc import Mapping

import numpy as np

from pi0_jax.convert.source import Leaf, Tensors
from pi0_jax.errors import InputError


def lora_names(tensors: Tensors) -> list[str]:
    """Returns the names of the tensors that are LoRA leaves."""
    return sorted(name for name in tensors.infos if "lora_" in name.lower())


class Merged:
    """Gives the tensors without LoRA leaves; these are merged when a weight is read."""

    def __init__(self, tensors: Tensors, scale: float, source: str) -> None:
        """Finds the pairs of LoRA leaves.

        Args:
            tensors: the checkpoint's arrays.
            scale: alpha / rank.
            source: names the checkpoint in messages.

        Raises:
            InputError: a LoRA leaf adapts nothing, has no partner, or has another shape.
        """
        self._tensors, self._scale = tensors, scale
        self._pairs: dict[str, tuple[str, str]] = {}
        names = lora_names(tensors)
        for name in names:
            if "lora_a" not in name:
                continue
            end = "/value" if name.endswith("/value") else ""
            stem = name.removesuffix(end).removesuffix("lora_a")
            base = (f"{stem}w" if stem.endswith("/") else stem.removesuffix("_")) + end
            partner = f"{stem}lora_b{end}"
            if (
                base in tensors.infos
                and partner in tensors.infos
                and self._fits(base, name, partner)
            ):
                self._pairs[base] = (name, partner)
        merged = {name for pair in self._pairs.values() for name in pair}
        if left := [name for name in names if name not in merged]:
            raise InputError(
                f"{source}: {', '.join(left[:3])}: LoRA leaves that fit no weight of π0"
            )
        self.infos: Mapping[str, Leaf] = {
            name: info for name, info in tensors.infos.items() if name not in merged
        }

    def _fits(self, base: str, a: str, b: str) -> bool:
        """Returns whether the product of a and b has the shape of the weight."""
        w, first, second = (self._tensors.infos[name].shape for name in (base, a, b))
        return (
            w[:-1] == first[:-1]
            and w[-1] == second[-1]
            and w[:-2] == second[:-2]
            and first[-1] == second[-2]
        )

    def read(self, name: str, entry: int | None = None) -> np.ndarray:
        """Reads an array, or its `entry` along the first axis."""
        w = self._tensors.read(name, entry)
        if name not in self._pairs:
            return w
        a, b = (self._tensors.read(part, entry).astype(np.float32) for part in self._pairs[name])
        return (w.astype(np.float32) + np.float32(self._scale) * (a @ b)).astype(w.dtype)
