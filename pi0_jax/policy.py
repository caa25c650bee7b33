"""A policy from a checkpoint directory and nothing else: raw observations in, action chunks in the robot's units out.

policy = Policy.open("runs/reach/train")
policy.warm_up(robot="reach_arm3", image_sizes=((64, 64),))
policy(observation, robot="reach_arm3")["actions"]         # float32[H, A]
policy.act([observation] * 8, robot="reach_arm3")          # float32[8, H, A]
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from pi0_jax import checkpoints, export, preprocess
from pi0_jax.errors import InputError
from pi0_jax.limits import Choice, Limits, Outside
from pi0_jax.models import lora, sampling
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0, parameter_shapes
from pi0_jax.observation import RawBatch, RawObservation, prompt_text
from pi0_jax.policy_config import PolicyConfig, layout, model_config, trainable_part
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.tokenizer import Tokenizer

# A prompt is padded to the first of these lengths that holds it, or to the run's max_tokens: few shapes, so few compilations.
PROMPT_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256)


class Prediction(TypedDict):
    actions: np.ndarray  # float32[H, A], in the robot's units
    # milliseconds: host_ms (checks, tokens, canvases), device_ms (with transfers), infer_ms (all)
    policy_timing: dict[str, float]
    outside: list[str]  # what lies outside of the data or of the robot's hard limits, see limits.py


class Prepared(NamedTuple):
    """The host's half of a call: what the compiled function takes beside the weights."""

    batch: RawBatch
    dims: np.ndarray  # bool[B, D]: the dimensions that the robot has
    noise: Any  # float32[B, H, D]
    layout: Layout  # static


class Policy:
    """Compiled once for each combination of robot, number of observations, image canvases and prompt length."""

    def __init__(
        self,
        config: PolicyConfig,
        robots: Mapping[str, Robot],
        tokenizer: Tokenizer,
        params: Any,
        *,
        num_steps: int | None = None,
        scan_layers: bool | None = None,
        unroll_steps: bool = False,
        limits: Choice = "tell",
    ) -> None:
        """
        Args:
            params: the published tree; kept in the run's compute dtype, but for what the model computes in float32.
            num_steps: Euler steps; None takes the run's.
            scan_layers: compile one layer and loop; None does so on a CPU, where calls take as long and starts half as long as with
                unrolled layers. Elsewhere layers' weights would be copied out of a stack before they are multiplied.
            unroll_steps: see sampling.sample.
            limits: what is done with states and actions outside of the data's range, see limits.py.

        Raises:
            InputError: num_steps is less than 1.
        """
        self.config = config
        self.robots = dict(robots)
        self._limits = {name: Limits(record, limits) for name, record in self.robots.items()}
        self.tokenizer = tokenizer
        self.num_steps = config.sampling_steps if num_steps is None else num_steps
        if self.num_steps < 1:
            raise InputError(f"num_steps: expected at least 1, found {self.num_steps}")
        scan_layers = jax.default_backend() == "cpu" if scan_layers is None else scan_layers
        # On the host: nothing is compiled for it, and the device holds the weights once.
        self.weights = jax.device_put(
            sampling.pack(jax.device_get(params), config.dtype, scan_layers=scan_layers)
        )
        options = ComputeOptions(dtype=jnp.dtype(config.dtype), scan_layers=scan_layers)
        self.model = Pi0(model_config(config), options)
        sampler = partial(
            sampling.sample, model=self.model, num_steps=self.num_steps, unroll_steps=unroll_steps
        )
        self._sample = jax.jit(
            partial(sample, sampler=sampler, real_dims_only=config.loss_dims == "real"),
            static_argnames="layout",
        )

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        dtype: str | None = None,
        num_steps: int | None = None,
        scan_layers: bool | None = None,
        unroll_steps: bool = False,
        limits: Choice = "tell",
    ) -> "Policy":
        """Opens the moving average of a run's latest checkpoint, or of one step's folder.

        Args:
            dtype: "float32" or "bfloat16" to compute in; None takes the run's.
            num_steps, scan_layers, unroll_steps, limits: as of Policy.

        Raises:
            InputError: no checkpoint there, or its arrays are not those of the variant that it names.
        """
        step = checkpoints.find(directory)
        description = checkpoints.read_description(step)
        config = description.policy
        if dtype is not None:
            config = dataclasses.replace(config, dtype=dtype)
        params = _averaged(step, config)
        return cls(
            config,
            description.robots,
            description.tokenizer,
            params,
            num_steps=num_steps,
            scan_layers=scan_layers,
            unroll_steps=unroll_steps,
            limits=limits,
        )

    @property
    def params(self) -> Any:
        """The published tree, made anew at each use."""
        return sampling.unpack(self.weights)

    def untrained(self, seed: int) -> "Policy":
        """The same policy with freshly initialised parameters: a control."""
        model = Pi0(model_config(self.config))
        params = jax.jit(lambda key: model.init(key, method=Pi0.declare)["params"])(
            jax.random.key(seed)
        )
        return Policy(
            self.config,
            self.robots,
            self.tokenizer,
            params,
            num_steps=self.num_steps,
            scan_layers=self.model.options.scan_layers,
        )

    def robot(self, name: str | None) -> Robot:
        """The named robot (a dataset's name); None where there is only one."""
        if name is None and len(self.robots) == 1:
            return next(iter(self.robots.values()))
        if name is None:
            raise InputError(
                f"no robot is named: the checkpoint has several, {', '.join(self.robots)}"
            )
        if name not in self.robots:
            raise InputError(
                f"robot {name!r}: the checkpoint has statistics for {', '.join(self.robots)}"
            )
        return self.robots[name]

    def __call__(
        self,
        observation: RawObservation,
        *,
        seed: int = 0,
        robot: str | None = None,
        noise: np.ndarray | None = None,
    ) -> Prediction:
        """The action chunk for one observation. `noise`: float32[H, D] to start from instead of the seed's. Raises as `act`."""
        start = time.perf_counter()
        prepared = self.prepare(
            [observation], [seed], robot=robot, noise=None if noise is None else noise[None]
        )
        host_done = time.perf_counter()
        actions, (outside,) = self._act([observation], prepared, robot)
        end = time.perf_counter()
        timing = {
            "host_ms": 1e3 * (host_done - start),
            "device_ms": 1e3 * (end - host_done),
            "infer_ms": 1e3 * (end - start),
        }
        told = [str(one) for one in outside]
        return {"actions": actions[0], "policy_timing": timing, "outside": told}

    def act(
        self,
        observations: Sequence[RawObservation],
        seeds: Sequence[int] | np.ndarray | None = None,
        *,
        robot: str | None = None,
        noise: np.ndarray | None = None,
        canvases: Sequence[tuple[int, int]] | None = None,
    ) -> np.ndarray:
        """Action chunks float32[B, H, number of action dimensions] in the robot's units, one per observation.

        Args:
            seeds: uint32[B], one per observation: keys its noise, so that the same call gives the same actions; None is all zeros.
            noise: float32[B, H, D] to start from instead.
            canvases: heights and widths to bring images onto, see preprocess.host; with those of `warm_up` nothing is compiled any more.

        Raises:
            InputError: see preprocess.host; a state is absurd, or something is outside and was to be refused, see limits.py.
            FloatingPointError: an action is not finite.
        """
        return self.predict(observations, seeds, robot=robot, noise=noise, canvases=canvases)[0]

    def predict(
        self,
        observations: Sequence[RawObservation],
        seeds: Sequence[int] | np.ndarray | None = None,
        *,
        robot: str | None = None,
        noise: np.ndarray | None = None,
        canvases: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[np.ndarray, list[list[Outside]]]:
        """What `act` returns, and for each observation what lies outside of the data or of the robot's hard limits."""
        prepared = self.prepare(observations, seeds, robot=robot, noise=noise, canvases=canvases)
        return self._act(observations, prepared, robot)

    def warm_up(
        self,
        *,
        robot: str | None = None,
        image_sizes: Sequence[tuple[int, int]] = ((224, 224),),
        batch_sizes: Sequence[int] = (1,),
    ) -> None:
        """Compiles for all prompt lengths, for cameras of each of these sizes (height, width; all cameras alike) and numbers of rows."""
        embodiment, statistics = self.robot(robot)
        for size, batch, tokens in itertools.product(image_sizes, batch_sizes, self.prompt_lengths):
            images = {
                camera: np.zeros((*size, 3), np.uint8) for camera in embodiment.cameras.values()
            }
            observation: RawObservation = {
                "images": images,
                "state": statistics.state.mean.astype(np.float32),
                "prompt": "",
            }
            prepared = self.prepare([observation] * batch, robot=robot, tokens=tokens)
            self.compute(prepared).block_until_ready()

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """The numbers of tokens to which prompts are padded."""
        longest = self.config.max_tokens
        return (*(length for length in PROMPT_LENGTHS if length < longest), longest)

    def layout(self, record: Robot) -> Layout:
        """An absent camera has no slot: it is not encoded."""
        return layout(self.config, preprocess.used_slots([record.embodiment]))

    def export(
        self,
        directory: str | Path,
        *,
        robot: str | None = None,
        image_size: tuple[int, int] = (224, 224),
        batch: int = 1,
    ) -> None:
        """Writes a folder that runs with JAX alone, on a CPU, an NVIDIA GPU or a TPU; see export.py.

        The program is this policy's: on a CPU, open it with scan_layers=False to export for accelerators.

        Args:
            image_size: height and width of every camera's image.

        Raises:
            InputError: the folder exists already.
        """
        record = self.robot(robot)
        export.write(
            Path(directory), weights=self.weights, sample=self._sample, layout=self.layout(record), robot=record, tokenizer=self.tokenizer,
            horizon=self.config.horizon, image_size=image_size, batch=batch,
        )  # fmt: skip

    def prepare(
        self,
        observations: Sequence[RawObservation],
        seeds: Sequence[int] | np.ndarray | None = None,
        *,
        robot: str | None = None,
        noise: np.ndarray | None = None,
        canvases: Sequence[tuple[int, int]] | None = None,
        tokens: int | None = None,
    ) -> Prepared:
        """The host's half of `act`, whose arguments it takes.

        Args:
            tokens: to which length prompts are padded; None takes the first of `prompt_lengths` that holds them.
        """
        if isinstance(observations, Mapping):
            raise InputError(
                "expected a sequence of observations, found one by itself: policy(observation) takes that"
            )
        count, record = len(observations), self.robot(robot)
        wanted = self.layout(record)
        wanted = wanted._replace(
            max_tokens=self._prompt_length(observations) if tokens is None else tokens
        )
        batch = preprocess.host(observations, [record] * count, wanted, self.tokenizer, canvases)
        dims = preprocess.dimension_masks([record] * count, wanted.action_dim)
        shape = (count, self.config.horizon, wanted.action_dim)
        if seeds is not None and len(seeds) != count:
            raise InputError(f"{len(seeds)} seeds for {count} observations; expected one each")
        if seeds is not None and not all(
            isinstance(seed, int | np.integer) and 0 <= seed < 2**32 for seed in seeds
        ):
            raise InputError(f"seeds: expected whole numbers in [0, 2^32), found {list(seeds)}")
        if noise is None:
            noise = _noise(
                np.asarray(np.zeros(count) if seeds is None else seeds, np.uint32), shape[1:]
            )
        elif noise.shape != shape:
            raise InputError(f"noise has shape {list(noise.shape)}; expected {list(shape)}")
        return Prepared(batch, dims, noise, wanted)

    def compute(self, prepared: Prepared) -> jax.Array:
        """The device's half of `act`, which is not waited for: float32[B, H, D] in model units."""
        return self._sample(
            self.weights, prepared.batch, prepared.dims, prepared.noise, layout=prepared.layout
        )

    def _act(
        self, observations: Sequence[RawObservation], prepared: Prepared, robot: str | None
    ) -> tuple[np.ndarray, list[list[Outside]]]:
        record = self.robot(robot)
        limits = self._limits[next(n for n, one in self.robots.items() if one is record)]
        states = np.stack([np.asarray(o["state"], np.float32) for o in observations])
        outside = limits.check_states(states)
        chunks = np.asarray(self.compute(prepared))
        actions = preprocess.to_robot(chunks, states, record, prepared.layout.normalization)
        actions, beyond = limits.check_actions(actions, states)
        return actions, [a + b for a, b in zip(outside, beyond, strict=True)]

    def _prompt_length(self, observations: Sequence[RawObservation]) -> int:
        """The first of the lengths that holds all prompts; the longest where none does, or what should be a prompt is none."""
        prompts = [prompt_text(o["prompt"]) for o in observations if "prompt" in o]
        needed = max((len(self.tokenizer.pieces(text)) for text in prompts if text), default=0)
        return next(
            (length for length in self.prompt_lengths if needed <= length), self.config.max_tokens
        )


def _averaged(step: epath.Path, config: PolicyConfig) -> Any:
    """A checkpoint's moving average as a published tree, on the host: what is frozen from the parameters, LoRA's products merged."""
    trainable, shapes = (
        trainable_part(config),
        flatten_dict(parameter_shapes(model_config(config)), sep="/"),
    )
    factor_shapes = jax.eval_shape(
        partial(lora.init, rules=config.lora), jax.random.key(0), unflatten_dict(shapes, sep="/")
    )

    def host(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """To be read as a NumPy array; takes no memory itself."""
        return np.broadcast_to(np.zeros((), dtype), shape)

    def held(path: str) -> np.ndarray:
        """What a product is added to comes in float32: the sum is rounded once."""
        return host(
            shapes[path].shape,
            np.float32
            if lora.find(config.lora, path)
            else sampling.storage_dtype(path, config.dtype),
        )

    trained = {path: held(path) for path in shapes if trainable.trains(path)}
    frozen = {path: held(path) for path in shapes if path not in trained}
    for path, leaf in flatten_dict(factor_shapes, sep="/").items():
        trained[path] = host(leaf.shape, leaf.dtype)
    read = flatten_dict(
        checkpoints.read_params(step, "ema", unflatten_dict(trained, sep="/")), sep="/"
    )
    if frozen:
        read |= flatten_dict(
            checkpoints.read_part(step, "params", unflatten_dict(frozen, sep="/")), sep="/"
        )
    add = jax.jit(lora.add, static_argnames=("rules", "path", "dtype"))
    for path in [path for path in frozen if lora.find(config.lora, path)]:
        a, b = read.pop(f"{path}/a"), read.pop(f"{path}/b")
        merged = add(
            read[path],
            a,
            b,
            rules=config.lora,
            path=path,
            dtype=sampling.storage_dtype(path, config.dtype),
        )
        # the device computes one leaf after the other, and keeps none
        read[path] = np.asarray(merged)
    return unflatten_dict(read, sep="/")


@partial(jax.jit, static_argnames="shape")
def _noise(seeds: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape))(seeds)


def sample(
    weights: sampling.Packed,
    batch: RawBatch,
    dims: jax.Array,
    noise: jax.Array,
    *,
    layout: Layout,
    sampler: Any,
    real_dims_only: bool,
) -> jax.Array:
    """What a policy runs: actions float32[B, H, D] in model units, from noise of that shape; `dims` bool[B, D], those that a robot has."""
    observation = preprocess.device(batch, layout)
    return sampler(weights, observation, noise, dim_mask=dims if real_dims_only else None)
