"""The policy benchmarks count right, and they run.

What they count is checked on a variant of which every number can be had by hand.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import arm, first_action, policy, random_checkpoint, serving
from benchmarks.roofline import Device, Work, measure_device
from pi0_jax.models.pi0 import VARIANTS, parameter_shapes
from pi0_jax.policy import Policy
from tests.own_process import loaded_by

PICO = dataclasses.replace(VARIANTS["pico"], action_dim=8, max_tokens=48)
STEPS = 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("random") / "run"
    random_checkpoint.write(directory, PICO, "float32")
    return directory


@pytest.fixture(scope="module")
def latencies(checkpoint):
    device = Device("made up", flops=1e9, bandwidth=1e6)
    return {
        (row.cameras, row.part): row
        for row in policy.benchmark_policy(
            Policy.open(checkpoint, dtype="float32"), device, calls=3
        )
    }


def test_random_weights_open_as_any_checkpoint(checkpoint):
    opened = Policy.open(checkpoint)
    assert sum(weight.size for weight in opened.weights.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(parameter_shapes(PICO))
    )
    chunk = opened(arm.observation(2), robot="benchmark_arm_2")["actions"]
    assert (
        chunk.shape == (PICO.horizon, arm.JOINTS) and np.isfinite(chunk).all() and np.ptp(chunk) > 0
    )


def test_every_part_is_timed_for_every_number_of_cameras(latencies):
    parts = ["images", "prefix", "Euler loop", "compiled", "host", "plain", "call"]
    assert list(latencies) == [(cameras, part) for cameras in (1, 2, 3) for part in parts]
    assert all(0 < row.p50 <= row.p90 <= row.p99 for row in latencies.values())
    assert len(policy.table(list(latencies.values())).splitlines()) == 2 + 21
    assert json.loads(json.dumps(policy.to_json(list(latencies.values()))))[0]["cameras"] == 1


def test_operations_and_bytes_are_those_of_the_model(latencies):
    """The counts of the variant pico agree with those by hand, in float32.

    It has 4 patches of 16x16 a camera, width 16, MLP 32 and 2 layers. The experts are 32 and 24
    wide, with MLPs 48 and 40, 4 heads of 8 of which 2 are keys and values, and 3 layers. There are
    16 tokens of prompt and 4 actions.
    """
    resize = 2 * (32 * 224 * 224 * 3 + 32 * 224 * 32 * 3)
    encoder = (
        2 * 4 * (768 * 16 + 2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 32) + 2 * 2 * 2 * 4 * 4 * 16
    )
    for cameras in (1, 2, 3):
        assert latencies[cameras, "images"].work.flops == cameras * (resize + encoder)
        tokens = 4 * cameras + 16
        layer = 32 * 32 + 32 * 32 + 3 * 32 * 48  # queries, output, MLP
        products = tokens * (2 * layer + 3 * 2 * 32 * 16) + 2 * 2 * tokens * tokens * 32
        assert latencies[cameras, "prefix"].work.flops == 2 * products

    keys_and_values = 2 * 32 * 16
    norm = 32
    whole_layer = 2 * 32 * 32 + 3 * 32 * 48 + keys_and_values + 2 * norm
    # the last layer ends at keys and values
    assert latencies[1, "prefix"].work.bytes == 4 * (2 * whole_layer + keys_and_values + norm)
    expert = 3 * (2 * 24 * 32 + 2 * 24 * 16 + 3 * 24 * 40 + 2 * 24) + 24
    projections = 2 * (8 * 24 + 24) + (48 * 24 + 24) + (24 * 24 + 24) + (24 * 8 + 8)
    cache = 3 * 2 * (4 + 16) * 16
    assert latencies[1, "Euler loop"].work.bytes == STEPS * 4 * (expert + projections + cache)


def test_the_plain_path_gives_the_same_actions(checkpoint):
    opened, seen, name = (
        Policy.open(checkpoint, dtype="float32"),
        arm.observation(1),
        arm.ROBOTS[1].name,
    )
    part = policy.plain(opened, seen, name)
    np.testing.assert_allclose(
        part.run(*part.arguments), opened.compute(opened.prepare([seen], robot=name)), atol=1e-5
    )


def test_the_least_time_is_of_operations_or_of_bytes(latencies):
    device = Device("made up", flops=1e9, bandwidth=1e6)
    assert device.least_seconds(Work(flops=4_000_000, bytes=1000)) == 0.004
    assert device.least_seconds(Work(flops=4_000_000, bytes=10_000)) == 0.01
    parts = [latencies[2, part].least for part in ("images", "prefix", "Euler loop")]
    assert (
        latencies[2, "compiled"].least == pytest.approx(sum(parts))
        and latencies[2, "host"].least is None
    )


@pytest.mark.slow
def test_rates_of_this_machine_are_plausible():
    device = measure_device("float32")
    assert device.name == jax.devices()[0].device_kind
    assert 1e8 < device.flops < 1e15 and 1e8 < device.bandwidth < 1e14


def test_a_process_starts_cold_and_warm(checkpoint, monkeypatch):
    monkeypatch.setattr(first_action, "ROUNDS", 1)
    starts = first_action.benchmark_starts(
        checkpoint, {"dtype": "float32", "scan_layers": False}, cameras=1
    )
    for start in (starts.cold, starts.warm):
        assert 0 < start.imported < start.opened < start.acted
    lengths = Policy.open(checkpoint).prompt_lengths("benchmark_arm_1")
    assert starts.warm_up.programs == len(lengths) + 1  # and the noise's
    assert starts.warm_up.seconds > 0 and starts.warm_up.processor_seconds > 0
    assert first_action.table(starts).splitlines()[-1] == f"warm / cold: {starts.ratio:.2f}"


@pytest.mark.slow
def test_what_serving_adds_is_taken_apart(checkpoint):
    measured = serving.benchmark_serving(checkpoint, "float32", calls=5)
    assert len(measured.in_process) == len(measured.round_trips) == len(measured.pings) == 5
    for trip in measured.round_trips:
        assert min(trip) > 0 and trip.overhead == pytest.approx(
            trip.packing + trip.queue + trip.socket
        )


def test_the_benchmark_needs_neither_tensorflow_nor_a_simulator():
    absent = ("tensorflow", "tensorflow_datasets", "torch", "mujoco", "gymnasium", "grain")
    assert loaded_by("from benchmarks import policy, serving, first_action", *absent) == []
