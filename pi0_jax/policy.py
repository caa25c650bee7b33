"""A policy from a checkpoint directory and nothing else: raw observations in, action chunks in the robot's units out.

policy = Policy.open("runs/reach/train")
chunks = policy.act([observation], robot="reach_arm3")     # float32[1, H, A]
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0_jax import checkpoints, preprocess
from pi0_jax.config import RunConfig, layout, model_config
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import Pi0, parameter_shapes, sample_actions
from pi0_jax.observation import RawBatch, RawObservation
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.tokenizer import Tokenizer


class Policy:
    """Compiled once for each robot, number of observations and image canvas."""

    def __init__(
        self, run: RunConfig, robots: Mapping[str, Robot], tokenizer: Tokenizer, params: Any, *, num_steps: int | None = None
    ) -> None:
        """`params`: the published tree, float32. `num_steps`: Euler steps; None takes the run's."""
        self.run = run
        self.robots = dict(robots)
        self.params = params
        self._tokenizer = tokenizer
        self._num_steps = run.sampling_steps if num_steps is None else num_steps
        model = Pi0(model_config(run), jnp.dtype(run.dtype), scan_layers=run.scan_layers)
        self._sample = jax.jit(
            partial(sample, model=model, num_steps=self._num_steps, real_dims_only=run.loss_dims == "real"),
            static_argnames="layout",
        )

    @classmethod
    def open(cls, directory: str | Path, *, num_steps: int | None = None) -> "Policy":
        """Opens the moving average of a run's latest checkpoint, or of one step's folder.

        Raises:
            InputError: no checkpoint there, or its arrays are not those of the variant that it names.
        """
        step = checkpoints.find(directory)
        description = checkpoints.read_description(step)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = checkpoints.read_params(step, "ema", jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), parameter_shapes(model_config(description.run))
        ))  # fmt: skip
        return cls(description.run, description.robots, description.tokenizer, params, num_steps=num_steps)

    def untrained(self, seed: int) -> "Policy":
        """The same policy with freshly initialised parameters: a control."""
        model = Pi0(model_config(self.run))
        params = jax.jit(lambda key: model.init(key, method="declare")["params"])(jax.random.key(seed))
        return Policy(self.run, self.robots, self._tokenizer, params, num_steps=self._num_steps)

    def robot(self, name: str | None) -> Robot:
        """The named robot (a dataset's name); None where there is only one."""
        if name is None and len(self.robots) == 1:
            return next(iter(self.robots.values()))
        if name not in self.robots:
            raise InputError(f"robot {name!r}: the checkpoint has statistics for {', '.join(self.robots)}")
        return self.robots[name]

    def act(
        self,
        observations: Sequence[RawObservation],
        seeds: Sequence[int] | np.ndarray | None = None,
        *,
        robot: str | None = None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Action chunks float32[B, H, number of action dimensions] in the robot's units, one per observation.

        Args:
            seeds: uint32[B], one per observation: keys its noise, so that the same call gives the same actions; None is all zeros.
            noise: float32[B, H, D] to start from instead.

        Raises:
            InputError: see preprocess.host.
        """
        record = self.robot(robot)
        wanted = layout(self.run, preprocess.used_slots([record.embodiment]))  # an absent camera is not encoded
        batch = preprocess.host(observations, [record] * len(observations), wanted, self._tokenizer)
        dims = preprocess.dimension_masks([record] * len(observations), wanted.action_dim)
        shape = (len(observations), self.run.horizon, wanted.action_dim)
        if seeds is not None and len(seeds) != len(observations):
            raise InputError(f"{len(seeds)} seeds for {len(observations)} observations; expected one each")
        if noise is None:
            noise = _noise(np.asarray(np.zeros(len(observations)) if seeds is None else seeds, np.uint32), shape[1:])
        elif noise.shape != shape:
            raise InputError(f"noise has shape {list(noise.shape)}; expected {list(shape)}")
        actions = np.asarray(self._sample(self.params, batch, dims, noise, layout=wanted))
        state = np.stack([observation["state"] for observation in observations])
        return preprocess.to_robot(actions, state, record, wanted.normalization)


@partial(jax.jit, static_argnames="shape")
def _noise(seeds: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def sample(
    params: Any, batch: RawBatch, dims: jax.Array, noise: jax.Array, *, layout: Layout, model: Pi0, num_steps: int, real_dims_only: bool
) -> jax.Array:
    """What a policy runs: actions float32[B, H, D] in model units, from noise of that shape; `dims` bool[B, D], those that a robot has."""
    observation = preprocess.device(batch, layout)
    return sample_actions(params, observation, noise, model=model, num_steps=num_steps, dim_mask=dims if real_dims_only else None)
