"""Measures the latency of a policy's parts, for one, two and three cameras.

Beside it stands the least time that the device's measured rates allow.

    images      uint8 images and tokens -> the prefix's tokens: resizing, image encoder, embedding
                of the prompt
    prefix      the prefix's tokens -> keys and values of every layer
    Euler loop  keys and values, state, noise -> actions: all steps
    compiled    these three as one function, which is what a policy runs
    plain       the same from the published tree: all camera slots encoded, the prompt at full
                length, weights not packed
    host        what a call does beside it: checks, tokens, canvases, transfers to the device and
                back, units
    call        raw observation in, actions in the robot's units out

Every call is waited for (block_until_ready). The compiled function may take less than its parts
together, because the compiler sees all of it.
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import arm, first_action, random_checkpoint
from benchmarks.roofline import Device, Work, measure_device
from pi0_jax import flow, preprocess
from pi0_jax.models import sampling
from pi0_jax.models.gemma import KVCache
from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import CAMERA_SLOTS, RawBatch, RawObservation
from pi0_jax.policy import Policy
from pi0_jax.policy.program import Prepared
from pi0_jax.policy_config import layout
from pi0_jax.train.chips import matmul_flops

PERCENTILES = (50, 90, 99)


class Latency(NamedTuple):
    """Holds the latency of one part for one number of cameras, in milliseconds.

    Attributes:
        cameras: the number of cameras.
        part: the part's name.
        p50: the median.
        p90: the 90th percentile.
        p99: the 99th percentile.
        work: operations and bytes of the part, or None for what the host does.
        least: the least time that the device's measured rates allow.
    """

    cameras: int
    part: str
    p50: float
    p90: float
    p99: float
    work: Work | None = None
    least: float | None = None


class Part(NamedTuple):
    """Holds a jitted function and its arguments, on the device."""

    run: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    def flops(self) -> int:
        return matmul_flops(self.run.trace(*self.arguments).jaxpr)


class Report(NamedTuple):
    """Holds a report as text, and as a record for JSON."""

    text: str
    record: dict[str, Any]


def report(
    variant: str, dtype: str, *, calls: int, scan_layers: bool | None, unroll_steps: bool
) -> Report:
    """Measures the latencies and starts of a policy with random weights.

    Args:
        variant: a name in random_checkpoint.MODELS.
        dtype: the policy's compute dtype.
        calls: how often each part is timed.
        scan_layers: see Policy.open.
        unroll_steps: see Policy.open.
    """
    how = {"scan_layers": scan_layers, "unroll_steps": unroll_steps}
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint.write(Path(folder, "run"), random_checkpoint.named(variant), dtype)
        # The starts are measured first: later this process holds the device's memory.
        starts = first_action.benchmark_starts(Path(folder, "run"), {"dtype": dtype, **how})
        policy = Policy.open(
            Path(folder, "run"), dtype=dtype, scan_layers=scan_layers, unroll_steps=unroll_steps
        )
    device = measure_device(dtype)
    latencies = benchmark_policy(policy, device, calls=calls)
    parameters = sum(weight.size for weight in policy.weights.values())
    rates = f"{device.flops / 1e12:,.3g} TFLOP/s, {device.bandwidth / 1e9:,.3g} GB/s"
    loops = f"layers {'scanned' if policy.model.options.scan_layers else 'unrolled'}, {policy.num_steps} steps"
    title = f"{variant}, {parameters:,} parameters, {dtype}, {loops}, JAX {jax.__version__} on {device.name} ({rates})"
    record = {
        "variant": variant, "parameters": parameters, "dtype": dtype, "num_steps": policy.num_steps, **how,
        "scan_layers": policy.model.options.scan_layers, "calls": calls, "jax": jax.__version__, "device": device._asdict(),
        "latencies": to_json(latencies), "starts": first_action.to_json(starts),
    }  # fmt: skip
    return Report("\n\n".join([title, table(latencies), first_action.table(starts)]), record)


def benchmark_policy(policy: Policy, device: Device, *, calls: int) -> list[Latency]:
    """Times `calls` calls of every part, for each of arm.ROBOTS."""
    return [
        latency for cameras in arm.ROBOTS for latency in _latencies(policy, device, cameras, calls)
    ]


def _latencies(policy: Policy, device: Device, cameras: int, calls: int) -> list[Latency]:
    robot, seen = arm.ROBOTS[cameras].name, arm.observation(cameras)
    policy(seen, robot=robot)
    parts = device_parts(policy, _placed(policy.prepare([seen], robot=robot)))
    seconds = {name: _timed(part, calls) for name, part in parts.items()}
    halves = [_halves(policy, seen, robot) for _ in range(calls)]
    seconds["compiled"], seconds["host"] = map(list, zip(*halves, strict=True))
    seconds["plain"] = _timed(plain(policy, seen, robot), calls)
    seconds["call"] = [_seconds(policy, seen, robot=robot) for _ in range(calls)]

    work = {
        name: Work(part.flops(), moved)
        for (name, part), moved in zip(parts.items(), _bytes(policy, parts), strict=True)
    }
    least = {name: 1e3 * device.least_seconds(part) for name, part in work.items()}
    # The parts' least times add up, because one part is bound by operations and another by bytes.
    work["compiled"], least["compiled"] = (
        Work(*(sum(numbers) for numbers in zip(*work.values(), strict=True))),
        sum(least.values()),
    )
    return [
        Latency(
            cameras,
            name,
            *(1e3 * np.percentile(taken, PERCENTILES)).tolist(),
            *((work[name], least[name]) if name in work else ()),
        )
        for name, taken in seconds.items()
    ]


def _halves(policy: Policy, seen: RawObservation, robot: str) -> tuple[float, float]:
    """Returns the seconds of one call in two parts.

    The first is the compiled function, whose inputs lie on the device. The second is all the rest.
    """
    start = time.perf_counter()
    prepared = _placed(policy.prepare([seen], robot=robot))
    begin = time.perf_counter()
    actions = policy.compute(prepared).block_until_ready()
    end = time.perf_counter()
    preprocess.to_robot(
        np.asarray(actions), prepared.states, policy.robot(robot), prepared.layout.normalization
    )
    return end - begin, time.perf_counter() - start - (end - begin)


def _placed(prepared: Prepared) -> Prepared:
    """Returns the prepared call with its arrays on the device."""
    batch, dims, noise = jax.block_until_ready(jax.device_put(prepared[:3]))
    return prepared._replace(batch=batch, dims=dims, noise=noise)


def device_parts(policy: Policy, prepared: Prepared) -> Mapping[str, Part]:
    """Returns the parts of the compiled function, each by itself."""
    weights, model = policy.weights, policy.model

    @jax.jit
    def encode(weights: sampling.Packed, batch: RawBatch) -> tuple[jax.Array, jax.Array]:
        observation = preprocess.device(batch, prepared.layout)
        return sampling.apply(model, weights, None, Pi0.embed_prefix, observation)

    @jax.jit
    def prefill(weights: sampling.Packed, tokens: jax.Array, valid: jax.Array) -> KVCache:
        return sampling.apply(model, weights, None, Pi0.prefill, tokens, valid)

    @jax.jit
    def integrate(
        weights: sampling.Packed,
        cache: KVCache,
        valid: jax.Array,
        state: jax.Array,
        noise: jax.Array,
    ) -> jax.Array:
        velocity = sampling.cached_velocity(weights, cache, valid, state, model=model)
        return flow.integrate(velocity, noise, policy.num_steps)

    tokens, valid = encode(weights, prepared.batch)
    cache = prefill(weights, tokens, valid)
    return {
        "images": Part(encode, (weights, prepared.batch)),
        "prefix": Part(prefill, (weights, tokens, valid)),
        "Euler loop": Part(
            integrate, (weights, cache, valid, prepared.batch.state, prepared.noise)
        ),
    }


def plain(policy: Policy, seen: RawObservation, robot: str) -> Part:
    """Returns a function that samples actions float32[1, H, D] without a policy's shortcuts."""
    record, wanted = policy.robot(robot), layout(policy.config, CAMERA_SLOTS)
    model = Pi0(policy.model.config, ComputeOptions(dtype=policy.model.options.dtype))

    def sample(params: Any, batch: RawBatch, noise: jax.Array) -> jax.Array:
        return sampling.sample(
            params, preprocess.device(batch, wanted), noise, model=model, num_steps=policy.num_steps
        )

    batch = preprocess.host([seen], [record], wanted, policy.tokenizer)
    return Part(
        jax.jit(sample),
        jax.device_put((policy.params, batch, policy.prepare([seen], robot=robot).noise)),
    )


def _bytes(policy: Policy, parts: Mapping[str, Part]) -> tuple[int, int, int]:
    """Returns the bytes that each part must read (see roofline.py).

    Of its last layer the prefix uses only the keys and values.
    """

    def size(wanted: str, unwanted: str = "^$") -> int:
        return sum(
            w.nbytes
            for path, w in policy.weights.items()
            if re.search(wanted, path) and not re.search(unwanted, path)
        )

    second_expert = r"_1(/|$)"
    last_layer = (
        size("llm/layers/", rf"{second_expert}|kv_einsum|pre_attention_norm")
        // policy.model.config.gemma.depth
    )
    cache = sum(array.nbytes for array in parts["Euler loop"].arguments[1])
    in_steps = size(rf"^(?!PaliGemma)|llm/.*{second_expert}")
    return (
        size("/img/"),
        size("llm/layers/", second_expert) - last_layer,
        policy.num_steps * (in_steps + cache),
    )


def _timed(part: Part, calls: int) -> list[float]:
    jax.block_until_ready(part.run(*part.arguments))
    return [_seconds(part.run, *part.arguments) for _ in range(calls)]


def _seconds(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args, **kwargs))
    return time.perf_counter() - start


def table(latencies: Sequence[Latency]) -> str:
    """Returns the latencies as a Markdown table."""
    lines = [
        "| cameras | part | p50, ms | p90 | p99 | GFLOP | MB | least, ms | share of it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in latencies:
        work = f"{row.work.flops / 1e9:,.2f} | {row.work.bytes / 1e6:,.1f}" if row.work else "|"
        least = f"{row.least:,.3f} | {row.least / row.p50:.2f}" if row.least else "|"
        lines.append(
            f"| {row.cameras} | {row.part} | {row.p50:,.2f} | {row.p90:,.2f} | {row.p99:,.2f} | {work} | {least} |"
        )
    return "\n".join(lines)


def to_json(latencies: Sequence[Latency]) -> list[dict[str, Any]]:
    return [
        {
            "cameras": row.cameras, "part": row.part, "p50_ms": row.p50, "p90_ms": row.p90, "p99_ms": row.p99,
            "flops": row.work.flops if row.work else None, "bytes": row.work.bytes if row.work else None, "least_ms": row.least,
        }
        for row in latencies
    ]  # fmt: skip
