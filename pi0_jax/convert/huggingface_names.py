"""The tensors of the PyTorch ports have Hugging Face's names and layouts.

They are the parts of PaliGemma and Gemma, under three prefixes.

    what             there                                      here
    linear map       [outputs, inputs]                          [inputs, outputs]
    heads            flattened                                  axes of their own
    layers           tensors apart                              stacked
    convolution      [outputs, colours, height, width]          [height, width, colours, outputs]

Norms of Gemma multiply by 1 + weight on both sides.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pi0_jax.convert.rules import Rule, rule
from pi0_jax.convert.source import Leaf
from pi0_jax.convert.tree import Sizes, sizes_of_config
from pi0_jax.models.pi0 import VARIANTS

_IMAGE = "PaliGemma/img"
_BLOCK = f"{_IMAGE}/Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"


class Prefixes(NamedTuple):
    """Says where a model keeps its parts."""

    vision: str
    projector: str
    language: str
    language_head: str


def vision_rules(prefix: str) -> list[Rule]:
    """Returns the rules of SigLIP, without its projection to the language model."""
    layer = f"{prefix}encoder.layers.{{layer}}."
    result = [
        rule(
            f"{prefix}embeddings.patch_embedding.weight",
            f"{_IMAGE}/embedding/kernel",
            "X C Q Q' -> Q Q' C X",
        ),
        rule(f"{prefix}embeddings.patch_embedding.bias", f"{_IMAGE}/embedding/bias", "X -> X"),
        rule(
            f"{prefix}embeddings.position_embedding.weight",
            f"{_IMAGE}/pos_embedding[0]",
            "P X -> P X",
        ),
        # Older files hold the numbers 0, 1, 2, ...
        rule(f"{prefix}embeddings.position_ids", "", role="unused"),
        rule(
            f"{prefix}post_layernorm.weight", f"{_IMAGE}/Transformer/encoder_norm/scale", "X -> X"
        ),
        rule(f"{prefix}post_layernorm.bias", f"{_IMAGE}/Transformer/encoder_norm/bias", "X -> X"),
    ]
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        result.append(
            rule(
                f"{layer}self_attn.{theirs}.weight",
                f"{_ATTENTION}/{ours}/kernel[layer]",
                "(M J) X -> X M J",
            )
        )
        result.append(
            rule(
                f"{layer}self_attn.{theirs}.bias",
                f"{_ATTENTION}/{ours}/bias[layer]",
                "(M J) -> M J",
            )
        )
    result.append(
        rule(
            f"{layer}self_attn.out_proj.weight",
            f"{_ATTENTION}/out/kernel[layer]",
            "X (M J) -> M J X",
        )
    )
    result.append(
        rule(f"{layer}self_attn.out_proj.bias", f"{_ATTENTION}/out/bias[layer]", "X -> X")
    )
    for theirs, ours in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
        result.append(rule(f"{layer}{theirs}.weight", f"{_BLOCK}/{ours}/scale[layer]", "X -> X"))
        result.append(rule(f"{layer}{theirs}.bias", f"{_BLOCK}/{ours}/bias[layer]", "X -> X"))
    for theirs, ours, inputs, outputs in (
        ("fc1", "Dense_0", "X", "Y"),
        ("fc2", "Dense_1", "Y", "X"),
    ):
        kernel = f"{outputs} {inputs} -> {inputs} {outputs}"
        result.append(
            rule(f"{layer}mlp.{theirs}.weight", f"{_BLOCK}/MlpBlock_0/{ours}/kernel[layer]", kernel)
        )
        result.append(
            rule(
                f"{layer}mlp.{theirs}.bias",
                f"{_BLOCK}/MlpBlock_0/{ours}/bias[layer]",
                f"{outputs} -> {outputs}",
            )
        )
    return result


def gemma_rules(prefix: str, suffix: str, width: str, mlp_dim: str) -> list[Rule]:
    """Returns the rules of one expert's layers and last norm.

    Args:
        prefix: begins the names of the foreign tensors.
        suffix: ends our names: "" or "_1".
        width: the letter of the expert's width.
        mlp_dim: the letter of the MLP's hidden width.
    """
    layer, ours = f"{prefix}layers.{{layer}}.", "PaliGemma/llm/layers"
    D, F = width, mlp_dim
    return [
        rule(
            f"{layer}self_attn.q_proj.weight",
            f"{ours}/attn/q_einsum{suffix}/w[layer]",
            f"(N H) {D} -> N {D} H",
        ),
        rule(
            f"{layer}self_attn.k_proj.weight",
            f"{ours}/attn/kv_einsum{suffix}/w[layer,0]",
            f"(K H) {D} -> K {D} H",
        ),
        rule(
            f"{layer}self_attn.v_proj.weight",
            f"{ours}/attn/kv_einsum{suffix}/w[layer,1]",
            f"(K H) {D} -> K {D} H",
        ),
        rule(
            f"{layer}self_attn.o_proj.weight",
            f"{ours}/attn/attn_vec_einsum{suffix}/w[layer]",
            f"{D} (N H) -> N H {D}",
        ),
        rule(
            f"{layer}mlp.gate_proj.weight",
            f"{ours}/mlp{suffix}/gating_einsum[layer,0]",
            f"{F} {D} -> {D} {F}",
        ),
        rule(
            f"{layer}mlp.up_proj.weight",
            f"{ours}/mlp{suffix}/gating_einsum[layer,1]",
            f"{F} {D} -> {D} {F}",
        ),
        rule(
            f"{layer}mlp.down_proj.weight",
            f"{ours}/mlp{suffix}/linear[layer]",
            f"{D} {F} -> {F} {D}",
        ),
        rule(
            f"{layer}input_layernorm.weight",
            f"{ours}/pre_attention_norm{suffix}/scale[layer]",
            f"{D} -> {D}",
        ),
        rule(
            f"{layer}post_attention_layernorm.weight",
            f"{ours}/pre_ffw_norm{suffix}/scale[layer]",
            f"{D} -> {D}",
        ),
        rule(f"{prefix}norm.weight", f"PaliGemma/llm/final_norm{suffix}/scale", f"{D} -> {D}"),
        # Older files hold this constant.
        rule(f"{layer}self_attn.rotary_emb.inv_freq", "", role="unused"),
    ]


def paligemma_rules(prefixes: Prefixes) -> list[Rule]:
    """Returns the rules of the image encoder, its projection, and Gemma with its embedding.

    The output head is tied to the embedding.
    """
    embedding = "PaliGemma/llm/embedder/input_embedding"
    return [
        *vision_rules(prefixes.vision),
        rule(f"{prefixes.projector}linear.weight", f"{_IMAGE}/head/kernel", "D X -> X D"),
        rule(f"{prefixes.projector}linear.bias", f"{_IMAGE}/head/bias", "D -> D"),
        rule(f"{prefixes.language}embed_tokens.weight", embedding, "V D -> V D"),
        rule(f"{prefixes.language_head}weight", embedding, "V D -> V D", role="copy"),
        *gemma_rules(prefixes.language, "", "D", "F"),
    ]


def pi0_rules(prefix: str) -> list[Rule]:
    """Returns the rules of all of π0.

    openpi's PyTorch port has the prefix "", LeRobot's has "model.".
    """
    joint = f"{prefix}paligemma_with_expert."
    paligemma, expert = f"{joint}paligemma.model.", f"{joint}gemma_expert."
    result = paligemma_rules(
        Prefixes(
            vision=f"{paligemma}vision_tower.vision_model.",
            projector=f"{paligemma}multi_modal_projector.",
            language=f"{paligemma}language_model.",
            language_head=f"{joint}paligemma.lm_head.",
        )
    )
    result += gemma_rules(f"{expert}model.", "_1", "E", "G")
    result.append(rule(f"{expert}lm_head.weight", "", "V E -> V E", role="unused"))
    for name, inputs, outputs in (
        ("state_proj", "A", "E"), ("action_in_proj", "A", "E"), ("action_out_proj", "E", "A"),
        ("action_time_mlp_in", "T", "E"), ("action_time_mlp_out", "E", "E'"),
    ):  # fmt: skip
        result.append(
            rule(
                f"{prefix}{name}.weight",
                f"{name}/kernel",
                f"{outputs} {inputs} -> {inputs} {outputs}",
            )
        )
        result.append(rule(f"{prefix}{name}.bias", f"{name}/bias", f"{outputs[0]} -> {outputs[0]}"))
    return result


# ---- sizes that flattened heads do not show

PUBLISHED_PORT_VARIANTS = ("gemma_2b", "gemma_300m")
_PUBLISHED = sizes_of_config(VARIANTS["pi0"])
_WIDTHS = {
    "post_layernorm.weight": "X",
    "language_model.norm.weight": "D",
    "language_model.model.norm.weight": "D",
}
_HIDDEN = ("H", "M")  # head_dim, image_heads


def is_published(sizes: Sizes) -> bool:
    """Returns whether these are the sizes of the published transformers.

    Action dimension and vocabulary may be others.
    """
    return all(sizes[letter] == size for letter, size in _PUBLISHED.items() if letter not in "AV")


def heads(infos: Mapping[str, Leaf], beside: Sizes, given: Sizes) -> dict[str, int]:
    """Returns the sizes of heads, and what the user gives.

    Sizes of heads are those of pi0_jax.json; else the published ones, if both widths are the
    published ones.

    Args:
        infos: shapes and dtypes of the foreign tensors.
        beside: the sizes that pi0_jax.json says.
        given: the sizes that the user gives, which win.
    """
    widths = {
        letter: info.shape[0]
        for name, info in infos.items()
        for end, letter in _WIDTHS.items()
        if name.endswith(end)
    }
    published = all(letter in widths and widths[letter] == _PUBLISHED[letter] for letter in "XD")
    known = {letter: _PUBLISHED[letter] for letter in _HIDDEN} if published else {}
    return known | {letter: beside[letter] for letter in _HIDDEN if letter in beside} | dict(given)
