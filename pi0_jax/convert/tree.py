"""Our parameter tree is the published one: every leaf, its axes, and the sizes that they tell.

Axes of the image encoder: I layers, C colours, Q patch side, P patches, X width, Y hidden width of
the MLP, M heads, J head dimension.
Of both experts: L layers, V vocabulary, N heads, K key-value heads, H head dimension. Widths and
hidden widths of the MLP: D and F of the language model, E and G of the action expert.
A action dimension, T the time MLP's input (2 E). A number is an axis of that size.
"""

import math
from collections.abc import Iterable, Mapping

from pi0_jax.errors import InputError
from pi0_jax.models.gemma import ExpertConfig, GemmaConfig
from pi0_jax.models.pi0 import Pi0Config
from pi0_jax.models.siglip import VisionConfig

Shape = tuple[int, ...]
Sizes = Mapping[str, int]  # axis letter -> size

# The letters' names in messages and in --sizes.
NAMES = {
    "I": "image_depth", "C": "image_channels", "Q": "patch_size", "P": "patches", "X": "image_width", "Y": "image_mlp_dim",
    "M": "image_heads", "J": "image_head_dim",
    "L": "depth", "V": "vocab_size", "N": "num_heads", "K": "num_kv_heads", "H": "head_dim",
    "D": "width", "F": "mlp_dim", "E": "expert_width", "G": "expert_mlp_dim", "A": "action_dim", "T": "time_mlp_input",
}  # fmt: skip
LETTERS = {name: letter for letter, name in NAMES.items()}

_IMAGE = "PaliGemma/img"
_BLOCK = f"{_IMAGE}/Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_LANGUAGE = "PaliGemma/llm"


def _expert(suffix: str, width: str, mlp_dim: str) -> dict[str, str]:
    """Returns the axes of one expert's leaves."""
    layers = f"{_LANGUAGE}/layers"
    return {
        f"{layers}/attn/q_einsum{suffix}/w": f"L N {width} H",
        f"{layers}/attn/kv_einsum{suffix}/w": f"L 2 K {width} H",
        f"{layers}/attn/attn_vec_einsum{suffix}/w": f"L N H {width}",
        f"{layers}/mlp{suffix}/gating_einsum": f"L 2 {width} {mlp_dim}",
        f"{layers}/mlp{suffix}/linear": f"L {mlp_dim} {width}",
        f"{layers}/pre_attention_norm{suffix}/scale": f"L {width}",
        f"{layers}/pre_ffw_norm{suffix}/scale": f"L {width}",
        f"{_LANGUAGE}/final_norm{suffix}/scale": width,
    }


def _layer_norm(name: str, axes: str) -> dict[str, str]:
    """Returns the axes of a layer norm's leaves."""
    return {f"{name}/scale": axes, f"{name}/bias": axes}


def _dense(name: str, kernel: str, bias: str) -> dict[str, str]:
    """Returns the axes of a dense layer's leaves."""
    return {f"{name}/kernel": kernel, f"{name}/bias": bias}


# PaliGemma's own checkpoints hold these leaves.
BACKBONE_AXES = {
    **_dense(f"{_IMAGE}/embedding", "Q Q C X", "X"),
    f"{_IMAGE}/pos_embedding": "1 P X",
    **_layer_norm(f"{_BLOCK}/LayerNorm_0", "I X"),
    **_dense(f"{_ATTENTION}/query", "I X M J", "I M J"),
    **_dense(f"{_ATTENTION}/key", "I X M J", "I M J"),
    **_dense(f"{_ATTENTION}/value", "I X M J", "I M J"),
    **_dense(f"{_ATTENTION}/out", "I M J X", "I X"),
    **_layer_norm(f"{_BLOCK}/LayerNorm_1", "I X"),
    **_dense(f"{_BLOCK}/MlpBlock_0/Dense_0", "I X Y", "I Y"),
    **_dense(f"{_BLOCK}/MlpBlock_0/Dense_1", "I Y X", "I X"),
    **_layer_norm(f"{_IMAGE}/Transformer/encoder_norm", "X"),
    **_dense(f"{_IMAGE}/head", "X D", "D"),
    f"{_LANGUAGE}/embedder/input_embedding": "V D",
    **_expert("", "D", "F"),
}
# All of π0 has 50 leaves.
AXES = {
    **BACKBONE_AXES,
    **_expert("_1", "E", "G"),
    **_dense("state_proj", "A E", "E"),
    **_dense("action_in_proj", "A E", "E"),
    **_dense("action_time_mlp_in", "T E", "E"),
    **_dense("action_time_mlp_out", "E E", "E"),
    **_dense("action_out_proj", "E A", "A"),
}


class Binding:
    """Collects the sizes of axes that tensors tell, each with the tensor that told it first."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._tensors: dict[str, str] = {}

    def add(self, name: str, shape: Shape, axes: Iterable[str], source: str) -> None:
        """Adds the sizes that a tensor tells.

        Args:
            name: the tensor's name.
            shape: its shape.
            axes: a letter for each of its axes, or a number for an axis of that size.
            source: names the checkpoint in messages.

        Raises:
            InputError: the tensor has other axes, or contradicts an earlier one. Both are named,
                with what each implies.
        """
        axes = tuple(axes)
        if len(shape) != len(axes):
            raise InputError(
                f"{source}: {name}: expected {len(axes)} axes ({' '.join(axes)}), found shape {list(shape)}"
            )
        for axis, size in zip(axes, shape, strict=True):
            if axis.isdigit():
                if size != int(axis):
                    raise InputError(
                        f"{source}: {name}: expected shape {' x '.join(axes)}, found {list(shape)}"
                    )
                continue
            known = self.sizes.setdefault(axis, size)
            first = self._tensors.setdefault(axis, name)
            if known != size:
                raise InputError(
                    f"{source}: shapes contradict each other: {NAMES[axis]} is {known} by {first}, {size} by {name} {list(shape)}"
                )

    def check_relations(self, source: str) -> None:
        """Raises InputError for sizes that no π0 has together; unknown sizes are not checked."""
        sizes = self.sizes
        relations = (
            ("P", lambda P: math.isqrt(P) ** 2 == P, "as many patches as a square image has"),
            ("C", lambda C: C == 3, "3 colours"),
            ("XMJ", lambda X, M, J: X == M * J, "image_width = image_heads x image_head_dim"),
            ("NK", lambda N, K: N % K == 0, "num_heads a multiple of num_kv_heads"),
            ("TE", lambda T, E: T == 2 * E, "time_mlp_input = 2 x expert_width"),
        )
        for letters, holds, rule in relations:
            if all(letter in sizes for letter in letters) and not holds(
                *(sizes[letter] for letter in letters)
            ):
                found = ", ".join(
                    f"{NAMES[letter]} {sizes[letter]}{self._by(letter)}" for letter in letters
                )
                raise InputError(
                    f"{source}: shapes contradict each other: expected {rule}, found {found}"
                )

    def _by(self, letter: str) -> str:
        """Names the tensor that told a size."""
        return f" (by {self._tensors[letter]})" if letter in self._tensors else ""


def expected_shapes(sizes: Sizes, axes: Mapping[str, str] = AXES) -> dict[str, Shape]:
    """Returns every leaf's shape."""
    return {
        path: tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in text.split())
        for path, text in axes.items()
    }


def model_config(sizes: Sizes, *, horizon: int, max_tokens: int) -> Pi0Config:
    """Returns the model of these sizes.

    No parameter shows horizon and prompt length.

    Args:
        sizes: the sizes by letter.
        horizon: H, the steps of an action chunk.
        max_tokens: the length of prompts.
    """
    return Pi0Config(
        vision=VisionConfig(
            image_size=math.isqrt(sizes["P"]) * sizes["Q"], patch_size=sizes["Q"], width=sizes["X"],
            depth=sizes["I"], mlp_dim=sizes["Y"], num_heads=sizes["M"],
        ),
        gemma=GemmaConfig(
            experts=(ExpertConfig(sizes["D"], sizes["F"]), ExpertConfig(sizes["E"], sizes["G"])),
            depth=sizes["L"], num_heads=sizes["N"], num_kv_heads=sizes["K"], head_dim=sizes["H"], vocab_size=sizes["V"],
        ),
        action_dim=sizes["A"], horizon=horizon, max_tokens=max_tokens,
    )  # fmt: skip


def sizes_of_config(config: Pi0Config) -> dict[str, int]:
    """Returns a model's sizes by letter.

    It inverts `model_config`, without horizon and prompt length.
    """
    vision, gemma = config.vision, config.gemma
    backbone, expert = gemma.experts
    return {
        "I": vision.depth, "C": 3, "Q": vision.patch_size, "P": vision.num_patches, "X": vision.width, "Y": vision.mlp_dim,
        "M": vision.num_heads, "J": vision.width // vision.num_heads,
        "L": gemma.depth, "V": gemma.vocab_size, "N": gemma.num_heads, "K": gemma.num_kv_heads, "H": gemma.head_dim,
        "D": backbone.width, "F": backbone.mlp_dim, "E": expert.width, "G": expert.mlp_dim,
        "A": config.action_dim, "T": 2 * expert.width,
    }  # fmt: skip
