"""These rules check several fields of a run's config together.

A rule takes the fields' values and yields complaints. A complaint begins with a field's name.
"""

from collections.abc import Iterator

from pi0_jax import fields, policy_config
from pi0_jax.data.oxe.soups import SOUPS
from pi0_jax.models import patterns, trainable
from pi0_jax.models.paths import flatten
from pi0_jax.policy_config import Variant


def _check_mixture(
    mixture: str, datasets: tuple[str, ...], weights: tuple[float, ...], frames_power: float
) -> Iterator[str]:
    """Yields complaints about an unknown mixture, or fields that a mixture states itself."""
    if mixture and mixture not in SOUPS:
        yield f"mixture {mixture!r} is unknown; expected one of {', '.join(SOUPS)}"
    elif mixture:
        soup = SOUPS[mixture]
        has = f"mixture is {mixture!r}, which has its own"
        if datasets and datasets != tuple(soup.weights):
            yield f"{has} datasets; expected config.datasets to be empty, found {datasets}"
        if weights and weights != tuple(soup.weights.values()):
            yield f"{has} weights; expected config.weights to be empty, found {weights}"
        if frames_power not in (0, soup.frames_power):
            yield f"{has} frames_power; expected config.frames_power 0, found {frames_power!r}"


def _check_weights(
    mixture: str, datasets: tuple[str, ...], weights: tuple[float, ...]
) -> Iterator[str]:
    """Yields complaints about datasets and weights that do not fit together."""
    if mixture:
        return
    if not datasets:
        yield "datasets is empty; expected the names of datasets, or config.mixture"
    elif weights and len(weights) != len(datasets):
        yield f"weights has {len(weights)} entries for {len(datasets)} datasets"
    if weights and min(weights) <= 0:
        yield f"weights is {weights}; expected positive numbers"


def _check_empty_language(
    mixture: str,
    datasets: tuple[str, ...],
    statistics_only: tuple[str, ...],
    keep_empty_language: tuple[str, ...],
) -> Iterator[str]:
    """Yields complaints about names that are no datasets of the run."""
    known = {*datasets, *statistics_only, *(SOUPS[mixture].weights if mixture in SOUPS else ())}
    for name in keep_empty_language:
        if name not in known:
            yield (
                f"keep_empty_language has {name!r}; expected some of config.datasets and statistics_only"
            )


def _check_warmup(warmup_steps: int, steps: int) -> Iterator[str]:
    """Yields a complaint if the warm-up is as long as the run."""
    if warmup_steps >= steps:
        yield f"warmup_steps is {warmup_steps}; expected at least 0 and less than steps ({steps})"


def _check_rules(initial_rules: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Yields complaints about patterns that are no usable regular expressions."""
    found = patterns.mistakes([pattern for pattern, _ in initial_rules])
    for i, ((pattern, _), wrong) in enumerate(zip(initial_rules, found, strict=True)):
        if wrong:
            yield f"initial_rules[{i}] is {pattern!r}; {wrong}"


def _check_no_decay(
    variant: str | Variant,
    action_dim: int,
    embodiment_tokens: tuple[str, ...],
    no_decay: tuple[str, ...],
) -> Iterator[str]:
    """Yields complaints about patterns that match no parameter."""
    if no_decay and (tree := policy_config.shapes(variant, action_dim, embodiment_tokens)):
        yield from trainable.unmatched("no_decay", no_decay, flatten(tree))


def _check_kept(
    save_every: int, validate_every: int, keep_every: int, keep_best: int
) -> Iterator[str]:
    """Yields complaints about checkpoints to keep that no save or no validation makes."""
    if keep_every % save_every:
        yield f"keep_every is {keep_every}; expected a multiple of save_every ({save_every}), or 0"
    if keep_best and validate_every % save_every:
        yield (
            f"validate_every is {validate_every}; expected a multiple of save_every ({save_every}):"
            " keep_best chooses among checkpoints of steps that are validated"
        )


CHECKS: tuple[fields.Check, ...] = (
    *policy_config.CHECKS,
    (_check_mixture, ("mixture", "datasets", "weights", "frames_power")),
    (_check_weights, ("mixture", "datasets", "weights")),
    (
        _check_empty_language,
        ("mixture", "datasets", "statistics_only", "keep_empty_language"),
    ),
    (_check_warmup, ("warmup_steps", "steps")),
    (_check_rules, ("initial_rules",)),
    (_check_no_decay, ("variant", "action_dim", "embodiment_tokens", "no_decay")),
    (_check_kept, ("save_every", "validate_every", "keep_every", "keep_best")),
)
