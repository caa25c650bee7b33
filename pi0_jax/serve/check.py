"""Checks a running server without its robot: random observations are sent to it."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pi0_jax.embodiments import ActionDim, Embodiment, StateDim
from pi0_jax.embodiments.keys import shortened, to_message
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.serve.client import Client

PROMPT = "pick up the red block"


def check(client: Client, *, calls: int, image_size: tuple[int, int]) -> Iterator[str]:
    """Sends random observations to a server and yields a line for each fact that it learns.

    Args:
        client: the client that is connected to the server.
        calls: how many observations are sent, one after the other.
        image_size: height and width of every camera's image, in pixels.

    Yields:
        One line of text at a time: the robot, its cameras, dimensions and rates, then the times.

    Raises:
        InputError: no server answers in time; the server refuses the key or an observation; it
            has no record of its robot; or an answer is not a finite chunk of the right shape.
    """
    try:
        embodiment, horizon = _record(client.metadata)
        yield f"robot     {embodiment.name}: {embodiment.robot}"
        names, sides = ", ".join(embodiment.cameras.values()), " x ".join(map(str, image_size))
        angle = embodiment.image_rotation
        turned = f"; clients turn images by {angle} degrees" if angle else ""
        yield f"cameras   {names or 'none'}; sent as {sides} pixels{turned}"
        yield f"state     {_dimensions(embodiment.state)}"
        yield f"actions   {_dimensions(embodiment.actions)}"
        rate = f", {embodiment.control_hz:g} a second" if embodiment.control_hz else ""
        yield f"chunk     {horizon} steps, of which {embodiment.execute_steps} are executed{rate}"
        rng, latency, policy = np.random.default_rng(0), [], []
        for _ in range(calls):
            message = to_message(random_observation(embodiment, rng, image_size), embodiment.keys)
            start = time.perf_counter()
            reply = client.infer(message)
            latency.append(1e3 * (time.perf_counter() - start))
            policy.append(_policy_time(reply, (horizon, len(embodiment.actions))))
    except TimeoutError as error:
        raise InputError(str(error)) from error
    yield f"latency   {_percentiles(latency)} of {calls} calls, network included"
    yield f"policy    {_percentiles(policy)} of them, by the server's own clock"


def random_observation(
    embodiment: Embodiment, rng: np.random.Generator, image_size: tuple[int, int]
) -> RawObservation:
    """Returns images of noise, with the robot's own camera names, and a state within its limits.

    Returns:
        Images uint8[height, width, 3] of `image_size`, by camera, a state float32[S] and a fixed
        prompt. A dimension of the state with one limit only stays within 1 of this limit. One
        without limits stays between -1 and 1.
    """
    state = [rng.uniform(*_ends(dim)) for dim in embodiment.state]
    return {
        "images": {
            camera: rng.integers(0, 256, (*image_size, 3), np.uint8)
            for camera in embodiment.cameras.values()
        },
        "state": np.array(state, np.float32),
        "prompt": PROMPT,
    }


def _ends(dim: StateDim) -> tuple[float, float]:
    """Returns the lowest and the highest value that is sent for a dimension."""
    if dim.low is None:
        return (-1.0, 1.0) if dim.high is None else (dim.high - 1.0, dim.high)
    return dim.low, dim.low + 1.0 if dim.high is None else dim.high


def _record(metadata: Any) -> tuple[Embodiment, int]:
    """Returns the robot's record and the number of steps in a chunk."""
    try:
        return Embodiment.from_json(metadata["embodiment"], stored=True), metadata["horizon"]
    except (KeyError, TypeError) as error:
        raise InputError(
            "the server's metadata: expected its robot's record as launch.serve sends it,"
            f" embodiment and horizon; found {shortened(metadata) or 'nothing'}"
        ) from error


def _policy_time(reply: Any, shape: tuple[int, int]) -> float:
    """Returns the server's own time in milliseconds, after a check of the answer's actions."""
    try:
        actions, milliseconds = reply["actions"], float(reply["policy_timing"]["infer_ms"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the answer: expected actions and policy_timing/infer_ms, found {shortened(reply)}"
        ) from error
    array = np.asarray(actions)
    if (array.dtype, array.shape) != (np.float32, shape):
        found = f"{array.dtype}{list(array.shape)}"
        raise InputError(f"the answer's actions: expected float32{list(shape)}, found {found}")
    if wrong := np.count_nonzero(~np.isfinite(array)):
        found = f"found {wrong} of {array.size} others"
        raise InputError(f"the answer's actions: expected finite numbers, {found}")
    return milliseconds


def _dimensions(dims: Sequence[StateDim | ActionDim]) -> str:
    return f"{len(dims)}: " + ", ".join(dim.label for dim in dims)


def _percentiles(milliseconds: Sequence[float]) -> str:
    p50, p99 = np.percentile(milliseconds, (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
