"""The policy's part of a run's config says what a policy needs to know of its model.

Every checkpoint carries it, and every policy reads it. How the model is trained stands in
train/config.py, whose record adds fields to this one.

Sources of the defaults: P the π0 paper (arXiv 2410.24164), O its published code. Where neither is
named the default is ours.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pi0_jax import fields
from pi0_jax.fields import field
from pi0_jax.models import trainable
from pi0_jax.models.gemma import GemmaConfig
from pi0_jax.models.lora import LoraRule
from pi0_jax.models.pi0 import VARIANTS, Pi0Config, parameter_shapes
from pi0_jax.models.siglip import VisionConfig
from pi0_jax.models.trainable import Trainable
from pi0_jax.preprocess import Layout

Dtype = Literal["float32", "bfloat16"]
DTYPES: Mapping[str, Dtype] = {dtype: dtype for dtype in get_args(Dtype)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Holds the sizes of a model that has no name."""

    vision: VisionConfig
    gemma: GemmaConfig

    def __str__(self) -> str:
        return "of its own sizes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Says how the model is built, reads an observation and samples actions.

    It also says which weights its checkpoint stores, and how.
    """

    variant: str | Variant = field(
        "pi0",
        f"Sizes of the model: a name ({', '.join(VARIANTS)}), or dict(vision=..., gemma=...) with the fields"
        " of VisionConfig and GemmaConfig in models/. (P, section IV and appendix B)",
        section="Model",
    )
    action_dim: int = field(
        32,
        "Dimensions of state and actions, padding included. (O: the released weights)",
        positive=True,
    )
    horizon: int = field(50, "Steps of an action chunk. (P, section IV)", positive=True)
    max_tokens: int = field(48, "Tokens to which a prompt is padded. (O)", positive=True)
    cut_prompts: bool = field(
        True,
        "A prompt of more than max_tokens loses its end (O). Else it is refused, and so is a longer one that"
        " tells the state.",
    )
    state_in_prompt: bool = field(
        False,
        "The prompt tells the state too, in 256 bins of each number, for a pi05 that is to read it (O: all its"
        " configurations but LIBERO's). See preprocess/tokenizer.py.",
    )
    embodiment_tokens: tuple[str, ...] = field(
        (),
        "Robots, by their records' names, that have a learnt token each before the prompt. (): no robot"
        " has one. (P, O)",
    )
    dtype: Dtype = field(
        "bfloat16",
        "In which matrix products and activations are computed; parameters are float32. (O)",
    )
    normalization: Literal["zscore", "quantile"] = field(
        "zscore",
        "How states and actions become model units: zscore by mean and standard deviation (O), quantile by"
        " the 1st and 99th percentiles.",
    )
    normalization_clip: float = field(
        0.0,
        "In model units: states and target actions are cut off at plus and minus this. 0: nowhere. (O)",
        at_least=0,
    )
    loss_dims: Literal["padded", "real"] = field(
        "padded",
        "Action dimensions that are trained: padded takes all action_dim (O), real those of each robot.",
        section="Flow matching",
    )
    sampling_steps: int = field(
        10, "Euler steps from noise to actions. (P, appendix B)", positive=True
    )
    frozen: tuple[str, ...] = field(
        (),
        "Regular expressions: parameters in whose published path one is found are not trained. See trainable.py.",
        section="What trains",
    )
    frozen_dtype: Dtype = field(
        "float32", "In which weights that are frozen or adapted by LoRA are kept."
    )
    lora: tuple[LoraRule, ...] = field(
        (),
        "Low-rank adaptation: dict(path=regular expression, rank=..., alpha=...). The first that matches a"
        " weight adapts it. See models/lora.py.",
    )
    ema_decay: float = field(
        0.99,
        "Decay of the moving average of what is trained, which a policy runs. 0: no average is kept, and a"
        " policy runs the parameters themselves. (O)",
        at_least=0,
        below=1,
    )


def from_json(record: Any, where: str) -> PolicyConfig:
    """Reads a stored config, of this version or an older one.

    Args:
        record: the config as plain data.
        where: the beginning of messages.

    Raises:
        InputError: it names every mistake.
    """
    return fields.read(PolicyConfig, record, where, checks=CHECKS, stored=True)


def split(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a flat config into the fields of PolicyConfig and the others."""
    ours = fields.names(PolicyConfig)
    return (
        {name: value for name, value in flat.items() if name in ours},
        {name: value for name, value in flat.items() if name not in ours},
    )


def model_config(config: PolicyConfig) -> Pi0Config:
    """Returns the sizes of the model."""
    sizes = config.variant if isinstance(config.variant, Variant) else VARIANTS[config.variant]
    return Pi0Config(
        sizes.vision,
        sizes.gemma,
        config.action_dim,
        config.horizon,
        config.max_tokens,
        len(config.embodiment_tokens),
    )


def trainable_part(config: PolicyConfig) -> Trainable:
    """Returns which parameters are trained."""
    return Trainable(config.frozen, config.frozen_dtype, config.lora, averaged=config.ema_decay > 0)


def layout(config: PolicyConfig, slots: tuple[str, ...]) -> Layout:
    """Returns the layout of observations for these camera slots."""
    return Layout(
        slots,
        model_config(config).vision.image_size,
        config.action_dim,
        config.max_tokens,
        config.normalization,
        config.normalization_clip,
        config.cut_prompts,
        config.state_in_prompt,
        config.embodiment_tokens,
    )


def _check_variant(variant: str | Variant) -> Iterator[str]:
    """Yields complaints about a name that no variant has, and about experts that π0 has not."""
    if isinstance(variant, str):
        if variant not in VARIANTS:
            yield f"variant {variant!r} is unknown; the variants are {', '.join(VARIANTS)}"
        return
    experts = variant.gemma.experts
    if len(experts) != 2:
        yield f"variant: expected two experts, PaliGemma's and the actions', found {len(experts)}"
    if experts and experts[0].adaptive:
        yield "variant: experts: expected adaptive norms in the second one alone, found them in the first"


def _check_state_in_prompt(
    variant: str | Variant, normalization: str, state_in_prompt: bool
) -> Iterator[str]:
    """Yields complaints about a state in the prompt of a model that has a token for it."""
    if not state_in_prompt or [*_check_variant(variant)]:
        return
    if not model_config(PolicyConfig(variant=variant)).adaptive:
        yield f"state_in_prompt is True, variant {variant} has a token for the state; expected False, or a pi05"
    if normalization != "quantile":
        yield f"normalization is {normalization!r}; expected 'quantile': state_in_prompt has bins from -1 to 1"


def _check_trained(
    variant: str | Variant,
    action_dim: int,
    embodiment_tokens: tuple[str, ...],
    frozen: tuple[str, ...],
    lora: tuple[LoraRule, ...],
) -> Iterator[str]:
    """Yields complaints about `frozen` and `lora`."""
    if (frozen or lora) and (tree := shapes(variant, action_dim, embodiment_tokens)):
        yield from trainable.mistakes(Trainable(frozen, lora=lora), tree)


def shapes(variant: str | Variant, action_dim: int, robots: tuple[str, ...]) -> Any:
    """Returns the shapes of the parameter tree at these sizes.

    For a variant that does not exist it returns {}.
    """
    if [*_check_variant(variant)]:
        return {}
    config = PolicyConfig(variant=variant, action_dim=action_dim, embodiment_tokens=robots)
    return parameter_shapes(model_config(config))


CHECKS: tuple[fields.Check, ...] = (
    (_check_variant, ("variant",)),
    (_check_state_in_prompt, ("variant", "normalization", "state_in_prompt")),
    (_check_trained, ("variant", "action_dim", "embodiment_tokens", "frozen", "lora")),
)
