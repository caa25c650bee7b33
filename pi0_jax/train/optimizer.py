"""The optimizer is AdamW with warm-up, cosine decay and clipping.

A step has two halves: new moments of the gradient, then new parameters of the moments. So the train
step can keep the old moments before anything reads the new ones, and each number passes through
memory once.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32

from pi0_jax.train.config import RunConfig


class Optimizer(NamedTuple):
    """Holds the functions of an optimizer; all trees are of what is trained (trainable.py).

    Attributes:
        init: parameters -> the state of a new run.
        moments: (gradient, its norm, unrounded state) -> the unrounded state after this gradient.
        step: (unrounded state after `moments`, parameters) -> the new parameters.
        unrounded: state -> the same in the dtypes that `moments` computes in.
        rounded: unrounded state -> the state as it is kept between steps.
    """

    init: Callable[[Any], Any]
    moments: Callable[[Any, Float32[Array, ""], Any], Any]
    step: Callable[[Any, Any], Any]
    unrounded: Callable[[Any], Any] = lambda state: state
    rounded: Callable[[Any], Any] = lambda state: state


def _with_first_moment(state: Any, *, dtype: Any) -> Any:
    """Returns the state of the chain below with its first moment in a dtype."""
    clip, (adam, decay, schedule) = state
    mu = jax.tree.map(lambda m: m.astype(dtype), adam.mu)
    return clip, (adam._replace(mu=mu), decay, schedule)


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


def make_optimizer(run: RunConfig) -> Optimizer:
    """Returns the optimizer for the tree of what is trained (trainable.py).

    Clipping, moments and decay see nothing else. The first moment is kept in
    `run.first_moment_dtype`. The second stays float32: a step moves it by about 1 - b2 of itself,
    and the 8 bits of bfloat16 would round that away where b2 is near 1.

    The state is that of optax.chain(clip_by_global_norm, adamw), which checkpoints hold; the
    numbers are those of optax too, but for a bfloat16 moment, which optax multiplies in bfloat16.
    """
    rate = learning_rate(run)
    chain = optax.chain(
        optax.clip_by_global_norm(run.clip_norm),
        optax.adamw(
            rate, b1=run.b1, b2=run.b2, eps=run.eps, mu_dtype=jnp.dtype(run.first_moment_dtype),
            weight_decay=run.weight_decay, mask=partial(decays, run.no_decay),
        ),
    )  # fmt: skip

    def moments(gradient: Any, norm: Float32[Array, ""], state: Any) -> Any:
        clip, (adam, decay, schedule) = state
        # A factor, since XLA for CPUs would write the result of a division by itself.
        clipping = jnp.where(norm < run.clip_norm, 1.0, run.clip_norm / norm)

        def first(g: Array, mu: Array) -> Array:
            return (1 - run.b1) * (clipping * g) + run.b1 * mu

        def second(g: Array, nu: Array) -> Array:
            return (1 - run.b2) * jnp.square(clipping * g) + run.b2 * nu

        adam = adam._replace(
            count=optax.safe_increment(adam.count),
            mu=jax.tree.map(first, gradient, adam.mu),
            nu=jax.tree.map(second, gradient, adam.nu),
        )
        return clip, (adam, decay, schedule._replace(count=optax.safe_increment(schedule.count)))

    def step(state: Any, params: Any) -> Any:
        _, (adam, _, schedule) = state
        unbias1, unbias2 = 1 - run.b1**adam.count, 1 - run.b2**adam.count
        factor = -rate(schedule.count - 1)

        def moved(p: Array, mu: Array, nu: Array, decay: bool) -> Array:
            update = mu / unbias1 / (jnp.sqrt(nu / unbias2) + run.eps)
            update = update + run.weight_decay * p if decay else update
            return p + factor * update

        return jax.tree.map(moved, params, adam.mu, adam.nu, decays(run.no_decay, params))

    return Optimizer(
        chain.init,
        moments,
        step,
        unrounded=partial(_with_first_moment, dtype=jnp.float32),
        rounded=partial(_with_first_moment, dtype=jnp.dtype(run.first_moment_dtype)),
    )


def decays(no_decay: Sequence[str], params: Any) -> Any:
    """Returns for each leaf whether weight decay moves it: no expression is found in its path."""

    def one(key: Any, _: Any) -> bool:
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        return not any(re.search(pattern, path) for pattern in no_decay)

    return jax.tree_util.tree_map_with_path(one, params)
