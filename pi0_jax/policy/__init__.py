"""A policy takes raw observations and gives action chunks in the robot's units.

    policy = Policy.open("runs/reach/train")
    policy.warm_up(robot="reach_arm3", image_sizes=((64, 64),))
    policy(observation, robot="reach_arm3")["actions"]         # float32[H, A]
    policy.act([observation] * 8, robot="reach_arm3")          # float32[8, H, A]

Axes: B observations, H action horizon, A the robot's action dimensions, D those of the model.
"""

import copy
import itertools
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from pi0_jax import checkpoints, preprocess
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.models import sampling
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import RawObservation
from pi0_jax.policy import averaged, export, program
from pi0_jax.policy.limits import Choice, Limits, Outside
from pi0_jax.policy.program import Prepared
from pi0_jax.policy_config import DTYPES, PolicyConfig, layout, model_config
from pi0_jax.preprocess import Layout, Robot
from pi0_jax.preprocess.tokenizer import Tokenizer


class Prediction(TypedDict):
    """Holds a policy's answer to one observation."""

    actions: Float32[np.ndarray, "H A"]  # in the robot's units
    # Milliseconds: host_ms (checks, tokens, canvases), device_ms (with transfers), infer_ms (all).
    policy_timing: dict[str, float]
    outside: list[str]  # what lies outside of the data or of the robot's hard limits, see limits.py


class Policy:
    """Is a trained π0 that takes raw observations and gives action chunks in the robot's units.

    `Policy.open` makes one of a checkpoint. A call compiles once for each combination of robot,
    number of observations, image sizes and prompt length; `warm_up` does so beforehand.

    Attributes:
        config: the model's sizes, and how it reads observations (PolicyConfig).
        robots: the embodiment and the statistics of each robot, by its dataset's name.
        num_steps: Euler steps of a call.
    """

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
        """Makes a policy of parameters that are at hand.

        Args:
            config, robots, num_steps: see the attributes; None takes the config's number of steps.
            tokenizer: the prompts' tokenizer.
            params: the published tree. It is kept in the config's compute dtype, but for what the
                model computes in float32.
            scan_layers: whether one layer is compiled and looped over. None does so on a CPU, where
                starts take half as long; elsewhere weights would be copied out of a stack.
            unroll_steps: whether each Euler step is compiled by itself instead of a loop.
            limits: what is done with states and actions outside of the data's range: "tell",
                "clamp" or "refuse", see limits.py.

        Raises:
            InputError: num_steps is less than 1.
        """
        self.config = config
        self.robots = dict(robots)
        self._choice = limits
        self._limits = self._unused_limits()
        self.tokenizer = tokenizer
        self.num_steps = config.sampling_steps if num_steps is None else num_steps
        if self.num_steps < 1:
            raise InputError(f"num_steps: expected at least 1, found {self.num_steps}")
        scan_layers = jax.default_backend() == "cpu" if scan_layers is None else scan_layers
        options = ComputeOptions(dtype=jnp.dtype(config.dtype), scan_layers=scan_layers)
        self.model = Pi0(model_config(config), options)
        self.weights = self._packed(params)
        sample = partial(
            program.sample,
            model=self.model,
            num_steps=self.num_steps,
            real_dims_only=config.loss_dims == "real",
            unroll_steps=unroll_steps,
        )
        self._sample = jax.jit(sample, static_argnames="layout")

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        robot: str | None = None,
        embodiment: str | Embodiment | None = None,
        tokenizer: str | None = None,
        sizes: Mapping[str, int] | None = None,
        state_in_prompt: bool | None = None,
        dtype: str | None = None,
        num_steps: int | None = None,
        scan_layers: bool | None = None,
        unroll_steps: bool = False,
        limits: Choice = "tell",
    ) -> "Policy":
        """Opens a policy: of a run, of one of its checkpoints, or of a released π0.

        Of a run it opens the moving average of the latest checkpoint. A released π0 is openpi's
        folder (JAX or PyTorch) or LeRobot's directory. The first five options say what its files do
        not; a checkpoint of ours does not take them.

        Args:
            directory: a run's workdir, one step's folder, or a released π0; a local folder or a
                gs:// or s3:// URL.
            robot: of a released π0: whose statistics, where it has several.
            embodiment: of a released π0: the robot's record, a known one's name, or a JSON file.
            tokenizer: of a released π0: path or URL of its SentencePiece model.
            sizes: of a released π0: sizes that no tensor shows, such as horizon, if not as
                published.
            state_in_prompt: of a released π0.5: whether its prompts tell the state, if not as
                published. LIBERO's do not.
            dtype: "float32" or "bfloat16" to compute in; None takes the checkpoint's.
            num_steps: Euler steps of a call; None takes the checkpoint's.
            scan_layers, unroll_steps, limits: see Policy.

        Returns:
            The policy. Where a released π0 left something to be assumed, a UserWarning says what.

        Raises:
            InputError: no such dtype; there is no checkpoint; a file of it is missing or damaged;
                its arrays are not those of the variant that it names, or not finite; the robot,
                record or tokenizer of a released π0 is missing.
        """
        from pi0_jax.convert.formats import DEFAULTS, Options, is_released, read_released

        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype: expected {' or '.join(DTYPES)}, found {dtype!r}")
        wanted = None if dtype is None else DTYPES[dtype]
        given = Options(robot, embodiment, tokenizer, sizes or {}, state_in_prompt=state_in_prompt)
        if given != DEFAULTS or is_released(directory):
            description, params, notes = read_released(directory, given, wanted)
            if notes:
                warnings.warn(f"{directory}: {'; '.join(notes)}", stacklevel=2)
        else:
            description, params = averaged.read(checkpoints.find(directory), wanted)
        return cls(
            description.policy,
            description.robots,
            description.tokenizer,
            params,
            num_steps=num_steps,
            scan_layers=scan_layers,
            unroll_steps=unroll_steps,
            limits=limits,
        )

    def _unused_limits(self) -> dict[str, Limits]:
        """Returns each robot's limits, which have counted nothing yet."""
        choice, binned = self._choice, self.config.state_in_prompt
        return {name: Limits(record, choice, binned) for name, record in self.robots.items()}

    def _packed(self, params: Any) -> sampling.Packed:
        """Packs weights on the host, so nothing is compiled for it, and the device holds them once."""
        scan_layers = self.model.options.scan_layers
        packed = sampling.pack(jax.device_get(params), self.config.dtype, scan_layers=scan_layers)
        weights: sampling.Packed = jax.device_put(packed)
        return weights

    @property
    def params(self) -> Any:
        """Returns the parameters as the published tree, made anew at each use."""
        return sampling.unpack(self.weights)

    def untrained(self, seed: int) -> "Policy":
        """Returns the same policy with freshly initialised parameters, as a control."""
        init = jax.jit(lambda key: self.model.init(key, method=Pi0.declare)["params"])
        other = copy.copy(self)
        other.weights = self._packed(init(jax.random.key(seed)))
        other._limits = other._unused_limits()
        return other

    def robot(self, name: str | None) -> Robot:
        """Returns a robot's embodiment and statistics.

        Args:
            name: the name of its dataset; None where there is only one robot.

        Raises:
            InputError: there is no robot of that name, or several and none is named.
        """
        return self.robots[program.robot_name(self.robots, name)]

    def __call__(
        self,
        observation: RawObservation,
        *,
        seed: int = 0,
        robot: str | None = None,
        noise: np.ndarray | None = None,
    ) -> Prediction:
        """Predicts the action chunk for one observation.

        Args:
            observation: images by the robot's camera names, uint8[height, width, 3] of any size;
                the state, in the robot's units; the prompt.
            seed: keys the noise, so that the same call gives the same actions.
            robot: the name of the robot's dataset; None where the checkpoint has one robot.
            noise: float32[H, D] to start from instead.

        Returns:
            The actions, what they took, and what lies outside: see Prediction.

        Raises:
            InputError: the observation lacks something, or has something of another shape.
        """
        start = time.perf_counter()
        prepared = self.prepare(
            [observation], [seed], robot=robot, noise=None if noise is None else noise[None]
        )
        host_done = time.perf_counter()
        actions, (outside,) = self.finish(prepared)
        end = time.perf_counter()
        seconds = {"host": host_done - start, "device": end - host_done, "infer": end - start}
        return {
            "actions": actions[0],
            "policy_timing": {f"{name}_ms": 1e3 * took for name, took in seconds.items()},
            "outside": [str(one) for one in outside],
        }

    def act(
        self,
        observations: Sequence[RawObservation],
        seeds: Sequence[int] | np.ndarray | None = None,
        *,
        robot: str | None = None,
        noise: np.ndarray | None = None,
        canvases: Sequence[tuple[int, int]] | None = None,
    ) -> np.ndarray:
        """Predicts action chunks for several observations of one robot.

        Args:
            observations: B of them, see `__call__`.
            seeds: uint32[B], one for each observation: keys its noise, so that the same call gives
                the same actions. None is all zeros.
            robot: the name of the robot's dataset; None where the checkpoint has one robot.
            noise: float32[B, H, D] to start from instead.
            canvases: heights and widths to bring images onto, see preprocess.host. With those of
                `warm_up` nothing is compiled any more.

        Returns:
            float32[B, H, number of action dimensions], in the robot's units. `finish` also says
            what lies outside of the data or of hard limits.

        Raises:
            InputError: an observation lacks something, or has something of another shape; a state
                is absurd, or something is outside and was to be refused (limits.py).
            NotFiniteError: weights or a state are so large that a number of the chunk is NaN or
                infinite; a chunk is never returned then.
        """
        prepared = self.prepare(observations, seeds, robot=robot, noise=noise, canvases=canvases)
        return self.finish(prepared)[0]

    def warm_up(
        self,
        *,
        robot: str | None = None,
        image_sizes: Sequence[tuple[int, int]] = ((224, 224),),
        batch_sizes: Sequence[int] = (1,),
    ) -> None:
        """Compiles for all lengths of the robot's prompts, so that later calls need not.

        Args:
            robot: the name of the robot's dataset; None where the checkpoint has one robot.
            image_sizes: heights and widths of images; all cameras are alike.
            batch_sizes: numbers of observations in one call of `act`.
        """
        record = self.robot(robot)
        for size, batch in itertools.product(image_sizes, batch_sizes):
            image = np.zeros((*size, 3), np.uint8)
            observation: RawObservation = {
                "images": dict.fromkeys(record.embodiment.cameras.values(), image),
                "state": record.statistics.state.mean.astype(np.float32),
                "prompt": "",
            }
            # In shorter ones there is no room for the state, where the prompt tells it.
            shortest = self.prepare([observation] * batch, robot=robot).layout.max_tokens
            for tokens in self.prompt_lengths(robot):
                if tokens >= shortest:
                    prepared = self.prepare([observation] * batch, robot=robot, tokens=tokens)
                    self.compute(prepared).block_until_ready()

    def prompt_lengths(self, robot: str | None = None) -> tuple[int, ...]:
        """Returns the numbers of tokens to which the prompts of a robot, by its name, are padded."""
        layout = self.layout(self.robot(robot))
        images = len(layout.slots) * self.model.config.vision.num_patches
        return program.prompt_lengths(layout.max_tokens, images)

    def layout(self, record: Robot) -> Layout:
        """Returns the layout of a robot's observations. A camera that it lacks has no slot."""
        return layout(self.config, preprocess.used_slots([record.embodiment]))

    def export(
        self,
        directory: str | Path,
        *,
        robot: str | None = None,
        image_size: tuple[int, int] = (224, 224),
        batch: int = 1,
    ) -> None:
        """Writes a folder that runs with JAX alone, on a CPU, an NVIDIA GPU or a TPU.

        export.py describes it. The program is this policy's: on a CPU, open it with
        scan_layers=False to export for accelerators.

        Args:
            directory: the new folder.
            robot: the name of the robot's dataset; None where the checkpoint has one robot.
            image_size: height and width of every camera's image, in pixels.
            batch: the number of observations in one call.

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
        """Runs the host's half of `act`, whose arguments it takes.

        One more is `tokens`, the length to which prompts are padded. None takes the first of
        `prompt_lengths` that holds them, with any state in them.
        """
        if isinstance(observations, Mapping):
            raise InputError("expected several observations, found one: call policy(observation)")
        name = program.robot_name(self.robots, robot)
        record, count = self.robots[name], len(observations)
        wanted = self.layout(record)
        if tokens is None:
            told = len(record.embodiment.state) if self.config.state_in_prompt else None
            lengths = self.prompt_lengths(name)
            tokens = program.prompt_length(observations, self.tokenizer, lengths, told)
        wanted = wanted._replace(max_tokens=tokens)
        batch = preprocess.host(observations, [record] * count, wanted, self.tokenizer, canvases)
        dims = preprocess.dimension_masks([record] * count, wanted.action_dim)
        shape = (count, self.config.horizon, wanted.action_dim)
        states = np.stack([np.asarray(o["state"], np.float32) for o in observations])
        return Prepared(batch, dims, program.start(seeds, noise, shape), wanted, name, states)

    def compute(self, prepared: Prepared) -> Float32[Array, "B H D"]:
        """Starts the device's part of `finish`: returns actions in model units, not waited for."""
        actions: Array = self._sample(
            self.weights, prepared.batch, prepared.dims, prepared.noise, layout=prepared.layout
        )
        return actions

    def finish(self, prepared: Prepared) -> tuple[np.ndarray, list[list[Outside]]]:
        """Runs the second half of `act`.

        Returns:
            The actions, and for each observation what lies outside of the data or of hard limits.
        """
        record, limits = self.robots[prepared.robot], self._limits[prepared.robot]
        outside = limits.check_states(prepared.states)
        chunks = np.asarray(self.compute(prepared))
        normalization = prepared.layout.normalization
        actions = preprocess.to_robot(chunks, prepared.states, record, normalization)
        actions, beyond = limits.check_actions(actions, prepared.states)
        return actions, [a + b for a, b in zip(outside, beyond, strict=True)]
