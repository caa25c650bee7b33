"""The real programs are compiled for TPU slices, on a machine without a TPU.

This needs libtpu; tests/test_aot.py runs this file where there is one.
"""

import importlib.util
import math

import jax
import pytest

from pi0_jax import sharding
from pi0_jax.aot import programs
from pi0_jax.aot.report import compile_only
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS, Pi0
from pi0_jax.train.state import abstract_state, jit_init
from tests.step_data import adam, reach_config
from tests.test_aot import FULL_SIZE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu cannot be imported; see test_for_tpu_slices",
)


@pytest.mark.parametrize(
    ("topology", "changes", "message"),
    [
        ("v5e:3x4", {}, "topology 'v5e:3x4': INVALID_ARGUMENT"),
        ("v4:2x2x1", {}, "topology 'v4:2x2x1': expected chips v5e, v5p, v6e, found TPU v4"),
        (
            "v5e:2x2",
            dict(mesh=dict(data=-1, fsdp=3, tensor=1)),
            "mesh data=-1 fsdp=3 tensor=1 does not fit 4 devices",
        ),
        (
            "v5p:4x4x4",
            dict(mesh=dict(data=8, fsdp=8, tensor=1)),
            "expected each size to be a product of sides of the slice of 64 TPU v5",
        ),
        ("v5e:2x2", dict(batch_size=6), "config.batch_size 6 is not a multiple of data x fsdp = 4"),
    ],
)
def test_what_cannot_be_compiled_is_refused(topology, changes, message):
    with pytest.raises(InputError, match=message):
        next(compile_only(reach_config(**changes), topology))


def test_a_state_that_is_too_large_is_told_before_compiling():
    report = next(compile_only(reach_config(**FULL_SIZE, batch_size=4), "v5e:1x1"))
    assert not report.fits
    assert report.text.endswith(
        "\n  does not fit: parameters, EMA and optimizer state alone take 51.8 of 16.9 GB a chip"
    )


@pytest.mark.slow
def test_a_small_model_fits_one_chip():
    reports = list(
        compile_only(
            reach_config(variant="pico", action_dim=6, horizon=4, max_tokens=12), "v5e:1x1"
        )
    )
    assert [report.fits for report in reports] == [True, True]
    assert (
        "train step on v5e:1x1: pico" in reports[0].text
        and "mesh data 1 x fsdp 1 x tensor 1" in reports[0].text
    )
    assert "sampler on one v5e chip" in reports[1].text


@pytest.mark.slow
def test_the_full_size_step_on_sixteen_chips():
    """The step fits with room, and every gather is of one weight of one layer, in bfloat16.

    Gradients leave by rings and scatters.
    """
    run = reach_config(**FULL_SIZE, batch_size=64, mesh=dict(data=2, fsdp=8, tensor=1))
    step = programs.train_step(run, programs.topology_devices("v5e:4x4"))
    state = 4 * 4 * 3_238_048_528  # parameters, EMA and two moments in float32
    assert state / 8 < step.arguments < 1.05 * state / 8
    assert step.used < 15 * 2**30
    largest = 2 * 2048 * 16_384 * 2  # gate and up projections of one layer of the language model
    assert max(c.bytes for c in step.collectives if c.kind == "all-gather") == largest
    assert (
        sum(c.times for c in step.collectives if c.kind == "all-gather" and c.bytes == largest)
        == 2 * 17
    )
    assert step.model_flops / 64 == pytest.approx(11.6e12, rel=0.02)  # of one sample
    assert 1.2 < step.flops / step.model_flops < 4 / 3


@pytest.mark.slow
def test_nothing_holds_the_full_model_while_it_is_created():
    """Parameters, EMA and moments are on eight chips.

    Arguments, outputs and temporaries are little more than an eighth of the state.
    """
    mesh = sharding.make_mesh(
        data=1, fsdp=8, tensor=1, devices=programs.topology_devices("v5e:2x4")
    )
    model, optimizer = Pi0(VARIANTS["pi0"]), adam(1e-4)
    state = abstract_state(model, optimizer, mesh)
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory = jit_init(model, optimizer, mesh).lower(key).compile().memory_analysis()
    assert (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        < 1.2 * total / 8
    )
