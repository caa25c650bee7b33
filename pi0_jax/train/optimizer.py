"""The optimizer is AdamW with warm-up, cosine decay and clipping."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pi0_jax.train.config import RunConfig


def learning_rate(run: RunConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    It rises from peak / (warm-up + 1) to the peak over `warmup_steps`. Then it follows a cosine
    down to `end_learning_rate` at `steps`.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=run.learning_rate / (run.warmup_steps + 1),
        peak_value=run.learning_rate,
        warmup_steps=run.warmup_steps,
        decay_steps=run.steps,
        end_value=run.end_learning_rate,
    )


def make_optimizer(run: RunConfig) -> optax.GradientTransformation:
    """Returns the optimizer for the tree of what is trained (trainable.py).

    Clipping, moments and decay see nothing else. The first moment is kept in
    `run.first_moment_dtype`. The second stays float32: a step moves it by about 1 - b2 of itself,
    and the 8 bits of bfloat16 would round that away where b2 is near 1.
    """
    return optax.chain(
        optax.clip_by_global_norm(run.clip_norm),
        optax.adamw(
            learning_rate(run), b1=run.b1, b2=run.b2, eps=run.eps,
            mu_dtype=jnp.dtype(run.first_moment_dtype),
            weight_decay=run.weight_decay, mask=partial(decays, run.no_decay),
        ),
    )  # fmt: skip


def decays(no_decay: Sequence[str], params: Any) -> Any:
    """Returns for each leaf whether weight decay moves it: no expression is found in its path."""

    def one(key: Any, _: Any) -> bool:
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        return not any(re.search(pattern, path) for pattern in no_decay)

    return jax.tree_util.tree_map_with_path(one, params)
