"""This file makes docs/formats.md.

The page says for each format its tensors, layouts and conventions, and the errors measured when the
page was made.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pi0_jax.convert import lerobot, openpi, ours, paligemma
from pi0_jax.convert.parity import Comparison
from pi0_jax.convert.rules import Rule
from pi0_jax.convert.tree import AXES, NAMES

_HEAD = """\
# Checkpoint formats

Made by `python -m launch.formats`. Converting: `python -m launch.convert --input=PATH --output=PATH --to=FORMAT [--verify]`; the format of
the input is found from its files.

What holds everywhere:

- **Our tree is the published one**, names and shapes; layers are stacked on the first axis. The letters below are its axes.
- **Time** runs from 1 (noise) to 0 (data) in every format, as in the published weights; the paper's τ is 1 - t. No weight depends on it.
- **Images** are float32 in [-1, 1] where they enter the model, resized with their aspect kept and padded with black (-1).
- **Gemma's norms** multiply by 1 + scale, in every format; SigLIP's by scale.
- **The embedding** is stored once here. What the ports' output heads hold is said below.
- **Statistics** of actions are taken after the delta conversion. Normalisation is (x - mean) / (std + 1e-6), or by the 1st and 99th
  percentile.
- **A checkpoint is refused** whose weights are not finite floats, whose safetensors headers leave gaps or share bytes, or whose statistics
  no data give (a negative standard deviation, q99 below q01, vectors of several lengths).
- **What a format has no room for** is written beside it, in `pi0_jax.json`, and read from there again. Where that contradicts the format's
  own files, the checkpoint is refused.
"""


class Format(NamedTuple):
    """Holds a format's part of the page: title, text, and the rules that its table shows."""

    title: str
    text: str
    rules: Sequence[Rule]


FORMATS = (
    Format(
        "`ours`: our checkpoint directory (in, out)",
        """\
`checkpoints/<step>/` with `ema`, `params`, `optimizer` (Orbax), `description` (JSON: policy, training, robots, tokenizer, position) and
`manifest` (digests of all files).
Read: the moving average, or the parameters with `--weights=params`. Written: the moving average and the description, so a policy opens it;
there is no optimizer to resume from. A policy whose config is not known gets the published settings.""",
        ours.RULES,
    ),
    Format(
        "`openpi_jax` (in, out)",
        """\
`params/` (Orbax, `{"params": tree}`, with or without a level `value` at every leaf) and `assets/<id>/norm_stats.json` for each robot.
Horizon and prompt length are in no file: 50 and 48 unless `--sizes` says otherwise. LoRA leaves are merged with `--merge_lora=ALPHA/RANK`,
else refused.""",
        openpi.JAX_RULES,
    ),
    Format(
        "`openpi_pytorch` (in, out)",
        """\
`model.safetensors`, `config.json`, `assets/<id>/norm_stats.json`. Head counts show in no tensor: they are those of `pi0_jax.json`, of the
published widths, or of `--sizes=head_dim=...,image_heads=...`. The backbone's `lm_head` is tied: written as the embedding once more, and
where a file holds only one of the two, that one is read. The expert's `lm_head` is no part of π0: written as zeros, never read.""",
        openpi.TORCH_RULES,
    ),
    Format(
        "`lerobot`: a LeRobot π0 policy directory (in, out)",
        """\
`model.safetensors` (openpi's names behind `model.`, tied and unused tensors as there), `config.json`, `policy_preprocessor.json`,
`policy_postprocessor.json` and their statistics in float32. One directory is one robot (`--robot`). Cameras stand in the order of their
slots; `use_relative_actions` with the names of what is absolute is our delta mask; `n_action_steps` the steps executed per chunk. `eps` is
written as 1e-6, which LeRobot adds to std as we do. A dimension without spread is written with a spread of 1, so that it is only centred,
as here. `config.json` names only the published sizes (gemma_2b, gemma_300m): others are exported with a warning.""",
        lerobot.RULES,
    ),
    Format(
        "`big_vision`: PaliGemma npz (in)",
        """\
One npz with `params/img/...` and `params/llm/...`, in our layout: initial weights. Every other leaf is freshly initialised (`--seed`; sizes
of the expert by `--sizes`), and listed. bfloat16, which NumPy writes as two bytes without a name, is known again.""",
        paligemma.NPZ_RULES,
    ),
    Format(
        "`hugging_face`: PaliGemma safetensors (in)",
        """\
One file or shards, with or without an index, and `config.json`: initial weights. The names are those of the Hub; those that transformers
has used since (`model.` in front, no `vision_model.`) are known too. A padded embedding is cut to 257,152 rows.""",
        paligemma.HUGGING_FACE_RULES[0],
    ),
)


def page(measured: Mapping[str, Sequence[Comparison]], environment: str) -> str:
    """Returns the whole page.

    Args:
        measured: what was compared with what -> the comparisons.
        environment: what the comparisons ran on, in a sentence.
    """
    parts = [_HEAD, "\n".join(_measured(measured, environment)), "\n".join(_axes())]
    parts += [
        f"## {format.title}\n\n{format.text}\n\n" + "\n".join(_table(format.rules))
        for format in FORMATS
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _measured(measured: Mapping[str, Sequence[Comparison]], environment: str) -> Iterator[str]:
    """Yields the table of measured errors."""
    yield f"## Measured\n\n{environment}\n\n| what | output | max abs error | relative to the largest |\n|---|---|---|---|"
    for what, comparisons in measured.items():
        for comparison in comparisons:
            yield f"| {what} | {comparison.output} | {comparison.absolute:.1e} | {comparison.relative:.1e} |"


def _axes() -> Iterator[str]:
    """Yields the table of our leaves and their axes."""
    letters = ", ".join(f"{letter} {name}" for letter, name in NAMES.items())
    yield f"## Our leaves\n\nAxes, by the names that `--sizes` knows: {letters}.\n\n| leaf | axes |\n|---|---|"
    yield from (f"| `{path}` | {axes} |" for path, axes in AXES.items())


def _table(rules: Sequence[Rule]) -> Iterator[str]:
    """Yields a format's table of tensors."""
    yield "| tensor | our leaf | layout |\n|---|---|---|"
    for rule in rules:
        index = f"[{','.join(rule.place)}]" if rule.place else ""
        where = f"`{rule.ours}{index}`" if rule.ours else "none: unused"
        yield f"| `{rule.foreign}` | {where}{', once more' if rule.role == 'copy' else ''} | {rule.layout} |"
