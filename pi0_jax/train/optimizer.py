"""AdamW with warm-up, cosine decay and clipping."""

import optax

from pi0_jax.config import RunConfig


def learning_rate(run: RunConfig) -> optax.Schedule:
    """From peak / (warm-up + 1) up to the peak over `warmup_steps`, then a cosine down to `end_learning_rate` at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=run.learning_rate / (run.warmup_steps + 1),
        peak_value=run.learning_rate,
        warmup_steps=run.warmup_steps,
        decay_steps=run.steps,
        end_value=run.end_learning_rate,
    )


def make_optimizer(run: RunConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(run.clip_norm),
        optax.adamw(learning_rate(run), b1=run.b1, b2=run.b2, eps=run.eps, weight_decay=run.weight_decay),
    )
