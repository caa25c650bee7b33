"""Our parameter tree is the published one: every leaf, its axes, and the sizes that they tell.

Axes of the image encoder: I layers, C colours, Q patch side, P patches, X width, Y hidden width of
the MLP, M heads, J head dimension.
Of both experts: L layers, V vocabulary, N heads, K key-value heads, H head dimension. Widths and
hidden widths of the MLP: D and F of the language model, E and G of the action expert.
A action dimension, T the input of π0's time MLP (2 E), S what modulates a norm of π0.5 (3 E). A
number is an axis of that size.
"""

import math
import re
from collections.abc import Collection, Mapping

from pi0_jax.errors import InputError
from pi0_jax.models.gemma import ExpertConfig, GemmaConfig
from pi0_jax.models.pi0 import Pi0Config
from pi0_jax.models.siglip import VisionConfig

Shape = tuple[int, ...]
Sizes = Mapping[str, int]  # axis letter -> size

# The letters' names in messages and in --sizes.
NAMES = {
    "I": "image_depth", "C": "image_channels", "Q": "patch_size", "P": "patches", "X": "image_width", "Y": "image_mlp_dim",
    "M": "image_heads", "J": "image_head_dim", "R": "embodiment_tokens",
    "L": "depth", "V": "vocab_size", "N": "num_heads", "K": "num_kv_heads", "H": "head_dim",
    "D": "width", "F": "mlp_dim", "E": "expert_width", "G": "expert_mlp_dim", "A": "action_dim", "T": "time_mlp_input", "S": "modulation",
}  # fmt: skip
LETTERS = {name: letter for letter, name in NAMES.items()}

_IMAGE = """
embedding/kernel                 Q Q C X
embedding/bias                   X
pos_embedding                    1 P X
BLOCK/LayerNorm_0/scale          I X
BLOCK/LayerNorm_0/bias           I X
ATTENTION/query/kernel           I X M J
ATTENTION/query/bias             I M J
ATTENTION/key/kernel             I X M J
ATTENTION/key/bias               I M J
ATTENTION/value/kernel           I X M J
ATTENTION/value/bias             I M J
ATTENTION/out/kernel             I M J X
ATTENTION/out/bias               I X
BLOCK/LayerNorm_1/scale          I X
BLOCK/LayerNorm_1/bias           I X
BLOCK/MlpBlock_0/Dense_0/kernel  I X Y
BLOCK/MlpBlock_0/Dense_0/bias    I Y
BLOCK/MlpBlock_0/Dense_1/kernel  I Y X
BLOCK/MlpBlock_0/Dense_1/bias    I X
Transformer/encoder_norm/scale   X
Transformer/encoder_norm/bias    X
head/kernel                      X D
head/bias                        D
""".replace("ATTENTION", "BLOCK/MultiHeadDotProductAttention_0").replace(
    "BLOCK", "Transformer/encoderblock"
)
# Of one expert: s is the end of its names, W its width, U the hidden width of its MLP.
_EXPERT = """
layers/attn/q_einsum{s}/w           L N {W} H
layers/attn/kv_einsum{s}/w          L 2 K {W} H
layers/attn/attn_vec_einsum{s}/w    L N H {W}
layers/mlp{s}/gating_einsum         L 2 {W} {U}
layers/mlp{s}/linear                L {U} {W}
"""
_NORMS = """
layers/pre_attention_norm{s}/scale  L {W}
layers/pre_ffw_norm{s}/scale        L {W}
final_norm{s}/scale                 {W}
"""
_ADAPTIVE_NORMS = """
layers/pre_attention_norm_1/Dense_0/kernel  L E S
layers/pre_attention_norm_1/Dense_0/bias    L S
layers/pre_ffw_norm_1/Dense_0/kernel        L E S
layers/pre_ffw_norm_1/Dense_0/bias          L S
final_norm_1/Dense_0/kernel                 E S
final_norm_1/Dense_0/bias                   S
"""
_PROJECTIONS = """
action_in_proj/kernel   A E
action_in_proj/bias     E
action_out_proj/kernel  E A
action_out_proj/bias    A
"""
_STATE_AND_TIME = """
state_proj/kernel           A E
state_proj/bias             E
action_time_mlp_in/kernel   T E
action_time_mlp_in/bias     E
action_time_mlp_out/kernel  E E
action_time_mlp_out/bias    E
"""
_TIME = """
time_mlp_in/kernel   E E
time_mlp_in/bias     E
time_mlp_out/kernel  E E
time_mlp_out/bias    E
"""


def _axes(table: str, prefix: str) -> dict[str, str]:
    """Returns the leaves of a table, whose names begin with `prefix`, and their axes."""
    rows = (line.partition(" ") for line in table.strip().splitlines())
    return {prefix + name: axes.strip() for name, _, axes in rows}


# PaliGemma's own checkpoints hold these leaves.
BACKBONE_AXES = {
    **_axes(_IMAGE, "PaliGemma/img/"),
    "PaliGemma/llm/embedder/input_embedding": "V D",
    **_axes((_EXPERT + _NORMS.lstrip()).format(s="", W="D", U="F"), "PaliGemma/llm/"),
}
_BOTH = {
    **BACKBONE_AXES,
    **_axes(_EXPERT.format(s="_1", W="E", U="G"), "PaliGemma/llm/"),
    **_axes(_PROJECTIONS, ""),
}
# All of π0 has 50 leaves, and π0.5 has 51.
PI0_AXES = {
    **_BOTH,
    **_axes(_NORMS.format(s="_1", W="E"), "PaliGemma/llm/"),
    **_axes(_STATE_AND_TIME, ""),
}
PI05_AXES = {**_BOTH, **_axes(_ADAPTIVE_NORMS, "PaliGemma/llm/"), **_axes(_TIME, "")}
# The robots' own tokens, which no other format has; R robots.
_OWN_AXES = {"embodiment_tokens/embedding": "R D"}
AXES = {**PI0_AXES, **PI05_AXES, **_OWN_AXES}  # of any
# What only one of the models has, in any format.
_PI0 = re.compile(r"(^|[./])(state_proj|action_time_mlp_(in|out))([./]|$)")
_PI05 = re.compile(r"(^|[./])time_mlp_(in|out)([./]|$)|norm\.dense\.|norm_1/Dense_0")


def axes_of(names: Collection[str], source: str) -> Mapping[str, str]:
    """Returns the leaves of π0 or of π0.5, whichever has tensors of these names in any format.

    Raises:
        InputError: some are of the one and some of the other.
    """
    pi0, pi05 = (sorted(filter(own.search, names)) for own in (_PI0, _PI05))
    if pi0 and pi05:
        raise InputError(
            f"{source}: expected one model, found {pi05[0]} of a π0.5 and {pi0[0]} of a π0"
        )
    own = {path: axes for path, axes in _OWN_AXES.items() if path in names}
    return {**(PI05_AXES if pi05 else PI0_AXES), **own}


def is_pi05(sizes: Sizes) -> bool:
    """Returns whether these are the sizes of a π0.5."""
    return "S" in sizes


def expected_shapes(sizes: Sizes, axes: Mapping[str, str] | None = None) -> dict[str, Shape]:
    """Returns the shape of every leaf, or of those of some axes."""
    if axes is None:
        axes = PI05_AXES if is_pi05(sizes) else PI0_AXES
    return {
        path: tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in text.split())
        for path, text in axes.items()
    }


def model_config(sizes: Sizes, *, horizon: int, max_tokens: int) -> Pi0Config:
    """Returns the model of these sizes; no parameter shows horizon and prompt length."""
    expert = ExpertConfig(sizes["E"], sizes["G"], adaptive=is_pi05(sizes))
    return Pi0Config(
        vision=VisionConfig(
            image_size=math.isqrt(sizes["P"]) * sizes["Q"], patch_size=sizes["Q"], width=sizes["X"],
            depth=sizes["I"], mlp_dim=sizes["Y"], num_heads=sizes["M"],
        ),
        gemma=GemmaConfig(
            experts=(ExpertConfig(sizes["D"], sizes["F"]), expert),
            depth=sizes["L"], num_heads=sizes["N"], num_kv_heads=sizes["K"], head_dim=sizes["H"], vocab_size=sizes["V"],
        ),
        action_dim=sizes["A"], horizon=horizon, max_tokens=max_tokens, embodiment_tokens=sizes.get("R", 0),
    )  # fmt: skip


def sizes_of_config(config: Pi0Config) -> dict[str, int]:
    """Returns a model's sizes by letter, the inverse of `model_config`."""
    vision, gemma = config.vision, config.gemma
    backbone, expert = gemma.experts
    return {
        "I": vision.depth, "C": 3, "Q": vision.patch_size, "P": vision.num_patches, "X": vision.width, "Y": vision.mlp_dim,
        "M": vision.num_heads, "J": vision.width // vision.num_heads,
        "L": gemma.depth, "V": gemma.vocab_size, "N": gemma.num_heads, "K": gemma.num_kv_heads, "H": gemma.head_dim,
        "D": backbone.width, "F": backbone.mlp_dim, "E": expert.width, "G": expert.mlp_dim,
        "A": config.action_dim, **({"S": 3 * expert.width} if config.adaptive else {"T": 2 * expert.width}),
    }  # fmt: skip
