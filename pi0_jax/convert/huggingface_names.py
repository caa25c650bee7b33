"""The tensors of the PyTorch ports have Hugging Face's names and layouts.

They are the parts of PaliGemma and Gemma, under three prefixes.

    what             there                                      here
    linear map       [outputs, inputs]                          [inputs, outputs]
    heads            flattened                                  axes of their own
    layers           tensors apart                              stacked
    convolution      [outputs, colours, height, width]          [height, width, colours, outputs]

Norms of Gemma multiply by 1 + weight on both sides.
"""

import re
from typing import NamedTuple

from pi0_jax.convert.rules import SAME, Rule, rule
from pi0_jax.convert.source import Tensors
from pi0_jax.convert.tree import Sizes, sizes_of_config
from pi0_jax.models.pi0 import VARIANTS

# The tables: a tensor, our leaf with the entry in it that the tensor is, and the layout of both.
_IMAGE_ENCODER = """
embeddings.patch_embedding.weight     embedding/kernel                X C Q Q' -> Q Q' C X
embeddings.patch_embedding.bias       embedding/bias                  X -> X
embeddings.position_embedding.weight  pos_embedding[0]                P X -> P X
post_layernorm.weight                 Transformer/encoder_norm/scale  X -> X
post_layernorm.bias                   Transformer/encoder_norm/bias   X -> X
"""
_IMAGE_LAYER = """
self_attn.q_proj.weight    MultiHeadDotProductAttention_0/query/kernel[layer]  (M J) X -> X M J
self_attn.q_proj.bias      MultiHeadDotProductAttention_0/query/bias[layer]    (M J) -> M J
self_attn.k_proj.weight    MultiHeadDotProductAttention_0/key/kernel[layer]    (M J) X -> X M J
self_attn.k_proj.bias      MultiHeadDotProductAttention_0/key/bias[layer]      (M J) -> M J
self_attn.v_proj.weight    MultiHeadDotProductAttention_0/value/kernel[layer]  (M J) X -> X M J
self_attn.v_proj.bias      MultiHeadDotProductAttention_0/value/bias[layer]    (M J) -> M J
self_attn.out_proj.weight  MultiHeadDotProductAttention_0/out/kernel[layer]    X (M J) -> M J X
self_attn.out_proj.bias    MultiHeadDotProductAttention_0/out/bias[layer]      X -> X
layer_norm1.weight         LayerNorm_0/scale[layer]                            X -> X
layer_norm1.bias           LayerNorm_0/bias[layer]                             X -> X
layer_norm2.weight         LayerNorm_1/scale[layer]                            X -> X
layer_norm2.bias           LayerNorm_1/bias[layer]                             X -> X
mlp.fc1.weight             MlpBlock_0/Dense_0/kernel[layer]                    Y X -> X Y
mlp.fc1.bias               MlpBlock_0/Dense_0/bias[layer]                      Y -> Y
mlp.fc2.weight             MlpBlock_0/Dense_1/kernel[layer]                    X Y -> Y X
mlp.fc2.bias               MlpBlock_0/Dense_1/bias[layer]                      X -> X
"""
# Of one expert: s is the end of our names, W its width, U the hidden width of its MLP.
_EXPERT_LAYER = """
self_attn.q_proj.weight          attn/q_einsum{s}/w[layer]            (N H) {W} -> N {W} H
self_attn.k_proj.weight          attn/kv_einsum{s}/w[layer,0]         (K H) {W} -> K {W} H
self_attn.v_proj.weight          attn/kv_einsum{s}/w[layer,1]         (K H) {W} -> K {W} H
self_attn.o_proj.weight          attn/attn_vec_einsum{s}/w[layer]     {W} (N H) -> N H {W}
mlp.gate_proj.weight             mlp{s}/gating_einsum[layer,0]        {U} {W} -> {W} {U}
mlp.up_proj.weight               mlp{s}/gating_einsum[layer,1]        {U} {W} -> {W} {U}
mlp.down_proj.weight             mlp{s}/linear[layer]                 {W} {U} -> {U} {W}
input_layernorm.weight           pre_attention_norm{s}/scale[layer]   {W} -> {W}
post_attention_layernorm.weight  pre_ffw_norm{s}/scale[layer]         {W} -> {W}
"""
# Of the action expert of π0.5, whose norms are dense layers of the time.
_ADAPTIVE_NORMS = """
layers.{layer}.input_layernorm.dense.weight           layers/pre_attention_norm_1/Dense_0/kernel[layer]  S E -> E S
layers.{layer}.input_layernorm.dense.bias             layers/pre_attention_norm_1/Dense_0/bias[layer]    S -> S
layers.{layer}.post_attention_layernorm.dense.weight  layers/pre_ffw_norm_1/Dense_0/kernel[layer]        S E -> E S
layers.{layer}.post_attention_layernorm.dense.bias    layers/pre_ffw_norm_1/Dense_0/bias[layer]          S -> S
norm.dense.weight                                     final_norm_1/Dense_0/kernel                        S E -> E S
norm.dense.bias                                       final_norm_1/Dense_0/bias                          S -> S
"""
_PROJECTIONS = """
state_proj.weight           state_proj/kernel           E A -> A E
state_proj.bias             state_proj/bias             E -> E
action_in_proj.weight       action_in_proj/kernel       E A -> A E
action_in_proj.bias         action_in_proj/bias         E -> E
action_out_proj.weight      action_out_proj/kernel      A E -> E A
action_out_proj.bias        action_out_proj/bias        A -> A
action_time_mlp_in.weight   action_time_mlp_in/kernel   E T -> T E
action_time_mlp_in.bias     action_time_mlp_in/bias     E -> E
action_time_mlp_out.weight  action_time_mlp_out/kernel  E' E -> E E'
action_time_mlp_out.bias    action_time_mlp_out/bias    E -> E
time_mlp_in.weight          time_mlp_in/kernel          E' E -> E E'
time_mlp_in.bias            time_mlp_in/bias            E -> E
time_mlp_out.weight         time_mlp_out/kernel         E' E -> E E'
time_mlp_out.bias           time_mlp_out/bias           E -> E
"""


def _rules(table: str, foreign: str, ours: str) -> list[Rule]:
    """Reads a table, with the beginnings of its foreign names and of ours."""
    rows = (re.split(r"\s{2,}", line) for line in table.strip().splitlines())
    return [rule(foreign + name, ours + leaf, layout) for name, leaf, layout in rows]


class Prefixes(NamedTuple):
    """Says where a model keeps its parts."""

    vision: str
    projector: str
    language: str
    language_head: str


def _expert_rules(prefix: str, suffix: str, width: str, mlp_dim: str) -> list[Rule]:
    """Returns the rules of one expert's layers and last norm."""
    layer, ours = f"{prefix}layers.{{layer}}.", "PaliGemma/llm/"
    table = _EXPERT_LAYER.format(s=suffix, W=width, U=mlp_dim)
    return [
        *_rules(table, layer, f"{ours}layers/"),
        rule(f"{prefix}norm.weight", f"{ours}final_norm{suffix}/scale", f"{width} -> {width}"),
        # Older files hold this constant.
        rule(f"{layer}self_attn.rotary_emb.inv_freq", "", SAME, "unused"),
    ]


def paligemma_rules(prefixes: Prefixes) -> list[Rule]:
    """Returns the rules of the image encoder, its projection, and Gemma with its embedding.

    The output head is tied to the embedding.
    """
    vision, projector, language, head = prefixes
    image, embedding = "PaliGemma/img/", "PaliGemma/llm/embedder/input_embedding"
    layers = f"{image}Transformer/encoderblock/"
    return [
        *_rules(_IMAGE_ENCODER, vision, image),
        # Older files hold the numbers 0, 1, 2, ...
        rule(f"{vision}embeddings.position_ids", "", SAME, "unused"),
        *_rules(_IMAGE_LAYER, f"{vision}encoder.layers.{{layer}}.", layers),
        rule(f"{projector}linear.weight", f"{image}head/kernel", "D X -> X D"),
        rule(f"{projector}linear.bias", f"{image}head/bias", "D -> D"),
        rule(f"{language}embed_tokens.weight", embedding, "V D -> V D"),
        rule(f"{head}weight", embedding, "V D -> V D", "copy"),
        *_expert_rules(language, "", "D", "F"),
    ]


def pi0_rules(prefix: str) -> list[Rule]:
    """Returns the rules of all of π0 and π0.5.

    openpi's PyTorch port has the prefix "", LeRobot's has "model.".
    """
    joint = f"{prefix}paligemma_with_expert."
    paligemma, expert = f"{joint}paligemma.model.", f"{joint}gemma_expert."
    prefixes = Prefixes(
        vision=f"{paligemma}vision_tower.vision_model.",
        projector=f"{paligemma}multi_modal_projector.",
        language=f"{paligemma}language_model.",
        language_head=f"{joint}paligemma.lm_head.",
    )
    return [
        *paligemma_rules(prefixes),
        *_expert_rules(f"{expert}model.", "_1", "E", "G"),
        *_rules(_ADAPTIVE_NORMS, f"{expert}model.", "PaliGemma/llm/"),
        rule(f"{expert}lm_head.weight", "", "V E -> V E", "unused"),
        *_rules(_PROJECTIONS, prefix, ""),
    ]


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
    return all(sizes[letter] == size for letter, size in _PUBLISHED.items() if letter not in "AVT")


def heads(tensors: Tensors, beside: Sizes, given: Sizes) -> dict[str, int]:
    """Returns the sizes of heads, and what the user gives.

    Sizes of heads are those of pi0_jax.json; else the published ones, if both widths are the
    published ones.

    Args:
        tensors: the foreign tensors.
        beside: the sizes that pi0_jax.json says.
        given: the sizes that the user gives, which win.
    """
    widths = {
        letter: tensor.shape[0]
        for name, tensor in tensors.items()
        for end, letter in _WIDTHS.items()
        if name.endswith(end)
    }
    published = all(widths.get(letter) == _PUBLISHED[letter] for letter in "XD")
    known = {letter: _PUBLISHED[letter] for letter in _HIDDEN} if published else {}
    return known | {letter: beside[letter] for letter in _HIDDEN if letter in beside} | dict(given)
