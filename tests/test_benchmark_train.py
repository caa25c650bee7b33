"""launch.benchmark train counts the numbers of a step right (at toy size, by hand), and it runs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import train
from benchmarks.train import TrainSpeed
from configs.reach import get_config
from pi0_jax.errors import InputError
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.train.state import run_mesh
from tests.own_process import python
from tests.training import environment

ROOT = Path(__file__).parents[1]

# Each of two devices does 8 TFLOP/s in large products. A step of 16 samples takes 0.5 s; the
# model's products are 2 TFLOP, and 1 more is computed again.
SPEED = TrainSpeed(
    device="chip", devices=2, mesh={"data": 2, "fsdp": 1, "tensor": 1}, parameters=1234, batch=16, draws=1, cameras=3, dtype="bfloat16",
    remat="full", compile_seconds=3.0, step_seconds=(0.5, 0.4, 1.5), model_flops=int(2e12), flops=int(3e12), matmul_rate=16e12,
    peak_bytes=None, resident_bytes=2_350_000_000,
)  # fmt: skip


def test_rates_follow_from_the_median_step():
    assert SPEED.samples_per_second == 32  # 16 in half a second
    assert SPEED.share == 0.25  # 4 of 16 TFLOP/s
    lines = train.table(SPEED).splitlines()
    assert "| a step | 500.0 ms, the median of 3 from 400.0 to 1500.0 ms |" in lines
    assert "| the model's products | 2 TFLOP a step, 4 TFLOP/s |" in lines
    assert "| computed again | 50% of them: 6 TFLOP/s in all |" in lines
    assert "| the model's of these | 25.0% |" in lines
    assert "| resident memory at its peak | 2.35 GB |" in lines


def test_a_variant_comes_with_its_sizes_and_settings_and_the_user_goes_before():
    run = train.sized(
        get_config().to_dict() | {"remat": "dots", "batch_size": 32},
        {"remat": "dots"},
        variant="pi0",
    )
    assert (run.variant, run.action_dim, run.horizon, run.max_tokens) == ("pi0", 32, 50, 48)
    assert (run.dtype, run.scan_layers, run.draws, run.batch_size) == ("bfloat16", True, 1, 32)
    assert run.remat == "dots"
    assert train.sized(get_config().to_dict(), {}, variant="pi0").remat == "full"
    assert train.sized(get_config().to_dict(), {}, variant=None).variant == "nano"
    with pytest.raises(InputError, match="--variant=huge: expected one of pi0, nano, pico"):
        train.sized(get_config().to_dict(), {}, variant="huge")


def test_a_synthetic_batch_is_one_that_a_model_can_read():
    run = train.sized(get_config().to_dict() | {"batch_size": 8}, {}, variant="pico")
    mesh = run_mesh(run, jax.devices())
    batch = jax.device_get(train.synthetic_batch(run, CAMERA_SLOTS[:2], mesh))
    seen = batch.observation
    assert list(seen.images) == ["base_0_rgb", "left_wrist_0_rgb"]
    pixels = seen.images["base_0_rgb"]
    # of even noise: 74
    assert pixels.dtype == np.uint8 and pixels.shape[0] == 8 and pixels.std() > 70
    np.testing.assert_array_equal(seen.image_sizes["base_0_rgb"], [pixels.shape[1:3]] * 8)
    assert (
        seen.image_masks["base_0_rgb"].all() and seen.token_mask.all() and batch.targets.dims.all()
    )
    assert seen.tokens.min() >= 0 and seen.tokens.max() < 512 and len(np.unique(seen.tokens)) > 50
    assert batch.rows.tolist() == list(range(8)) and not batch.frames.dataset.any()
    assert abs(batch.targets.actions.std() - 1) < 0.1


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    run = train.sized(get_config().to_dict() | {"batch_size": 12}, {}, variant="pico")
    with pytest.raises(InputError, match=r"config\.batch_size 12 .* data x fsdp = 8"):
        train.benchmark_train(run, cameras=1, steps=1)


@pytest.mark.slow
def test_the_command_measures_a_step_without_tensorflow_or_data(tmp_path):
    """Packages that only reading and writing data need are not there."""
    absent = ("tensorflow", "tensorflow_datasets", "simplejpeg", "google_crc32c", "loky", "orbax")
    program = f"import sys, runpy; sys.modules.update(dict.fromkeys({absent})); runpy.run_module('launch.benchmark', run_name='__main__')"
    flags = ("--variant=pico", "--config.batch_size=8", "--cameras=2", "--calls=3")
    flags += (f"--json={tmp_path / 'speed.json'}",)
    done = python("-c", program, "train", *flags, env=environment(1, cached=False))
    assert done.stdout.startswith("| what | result |\n|---|---|\n| device | ")
    measured = json.loads((tmp_path / "speed.json").read_text())
    assert (
        len(measured["step_seconds"]) == 3 and measured["batch"] == 8 and measured["cameras"] == 2
    )
    assert measured["model_flops"] == measured["flops"] > 0  # nothing is computed again: remat none
    assert measured["matmul_rate"] > 1e9
    assert 0 < measured["share_of_matmul_rate"] < 1
