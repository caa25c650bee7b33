"""Compiling for machines that are not there: what is read from XLA's text, and the full-size step on TPU slices (where libtpu is)."""

import importlib.util
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pi0_jax import sharding
from pi0_jax.ahead import hlo, programs, step
from pi0_jax.ahead.chips import CHIPS, roofline
from pi0_jax.ahead.report import compile_only
from pi0_jax.config import RunConfig, from_mapping
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS, Pi0
from pi0_jax.train import placement
from pi0_jax.train.flops import matmul_flops

ROOT = Path(__file__).parents[1]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)")

# The published model with three cameras, as it is trained on TPUs.
FULL_SIZE = dict(
    variant="pi0", datasets=("aloha_mobile",), weights=(1.0,), statistics_only=(), action_dim=32, horizon=50, max_tokens=48, draws=1,
    dtype="bfloat16", scan_layers=True, remat="full", augment=True, loss_dims="padded",
)  # fmt: skip


def config(**changes) -> RunConfig:
    from configs.reach import get_config

    return from_mapping({**get_config().to_dict(), **changes})


# What is read from XLA's text. Programs of eight virtual devices, small enough to count by hand.


def compiled_text(function, *arguments, out=None) -> str:
    return jax.jit(function, out_shardings=out).lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=4, tensor=1)


def test_collectives_inside_a_loop_count_as_often_as_it_runs(mesh):
    """Weights float32[5, 64, 32], split in four, gathered one layer at a time; a device sends three quarters of each to its neighbour."""
    split, whole = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P())

    def layers(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)[:, :] @ w.T), None), x, stack)[0]

    arguments = (
        jax.ShapeDtypeStruct((5, 64, 32), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp")))),
    )
    program = hlo.parse(compiled_text(layers, *arguments))
    gathers = [c for c in hlo.collectives(program) if c.kind == "all-gather" and c.bytes == 64 * 32 * 4]
    assert program.devices == 8
    assert [(c.count, c.group, c.sent) for c in gathers] == [(5, 4, 5 * 64 * 32 * 4 * 3 / 4)]


def test_a_sum_over_all_devices(mesh):
    """float32[16], half of which every device holds: summed over two groups of devices at a time."""
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    program = hlo.parse(compiled_text(lambda x: x.sum(axis=0), x, out=NamedSharding(mesh, P())))
    (collective,) = hlo.collectives(program)
    assert (collective.kind, collective.bytes, collective.group, collective.count) == ("all-reduce", 64, 8, 1)
    assert collective.sent == 2 * 64 * 7 / 8


@pytest.mark.parametrize(
    ("shape", "everything", "hbm"),
    [
        ("f32[3,4]{1,0}", 48, 48),
        ("(bf16[8]{0:T(8,128)S(1)}, /*index=1*/s32[2]{0})", 24, 8),
        ("pred[]", 1, 1),
        ("token[]", 0, 0),
    ],
)
def test_sizes_of_shapes(shape, everything, hbm):
    assert (hlo.size(shape), hlo.size(shape, hbm_only=True)) == (everything, hbm)


TPU_LOOP = """HloModule jit_f, num_partitions=4

%all-reduce-scatter (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,32]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.1 = bf16[16,32]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={16,32}
}

%wide.windowed_dot_general_body_rs (p.1: (u32[], bf16[64,32])) -> (u32[], bf16[64,32]) {
  %p.1 = (u32[], bf16[64,32]{1,0:S(1)}) parameter(0)
  %i.1 = u32[] get-tuple-element(%p.1), index=0
  %two = u32[] constant(2)
  %next.1 = u32[] add(%i.1, %two)
  %x.1 = bf16[64,32]{1,0:S(1)} get-tuple-element(%p.1), index=1
  %start = (bf16[64,32]{1,0:S(1)}, bf16[64,32]{1,0:S(1)}) collective-permute-start(%x.1), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %done = bf16[64,32]{1,0:S(1)} collective-permute-done(%start)
  ROOT %out.1 = (u32[], bf16[64,32]{1,0:S(1)}) tuple(%next.1, %done)
}

%condition (p.2: (u32[], bf16[64,32])) -> pred[] {
  %p.2 = (u32[], bf16[64,32]{1,0:S(1)}) parameter(0)
  %i.2 = u32[] get-tuple-element(%p.2), index=0
  %eight = u32[] constant(8)
  ROOT %less = pred[] compare(%i.2, %eight), direction=LT
}

ENTRY %main (a: bf16[64,32], n: (u32[], bf16[64,32])) -> bf16[16,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %n = (u32[], bf16[64,32]{1,0:S(1)}) parameter(1)
  %while.1 = (u32[], bf16[64,32]{1,0:S(1)}) while(%n), condition=%condition, body=%wide.windowed_dot_general_body_rs
  %negate.1 = bf16[64,32]{1,0} negate(%a)
  ROOT %fusion.1 = bf16[16,32]{1,0} fusion(%negate.1), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_how_tpus_write_a_reduce_scatter():
    """As an all-reduce of which each device computes its part, or as parts handed around a ring; the loop counts to 8 by twos."""
    program = hlo.parse(TPU_LOOP)
    scatter, ring = sorted(hlo.collectives(program), key=lambda c: c.count)
    array = 64 * 32 * 2
    assert (scatter.kind, scatter.bytes, scatter.group, scatter.count, scatter.sent) == ("reduce-scatter", array, 4, 1, array * 3 / 4)
    assert (ring.kind, ring.bytes, ring.count, ring.sent) == ("ring reduce-scatter", array, 4, 4 * array)
    # HBM: negate reads and writes the array, the fusion writes a quarter; each collective its own array; the loop's counter, 12 bytes.
    assert hlo.hbm_traffic(program) == 2 * array + array // 4 + scatter.bytes + 4 * ring.bytes + 4 * 12


def test_flops_of_loops_gradients_and_rematerialisation():
    """x[3, 4] @ w[4, 4], six times: 6 * 2*3*4*4 forward; twice that backward; once more where layers are computed again."""

    def loss(w, x, *, remat):
        layer = (jax.checkpoint if remat else lambda f: f)(lambda x, w: (jnp.sin(x @ w), None))
        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    w, x = jnp.zeros((6, 4, 4)), jnp.zeros((3, 4))
    forward = 6 * 2 * 3 * 4 * 4

    def count(function):
        return matmul_flops(jax.jit(function).trace(w, x).jaxpr)

    assert count(partial(loss, remat=False)) == forward
    assert count(jax.grad(partial(loss, remat=False), argnums=(0, 1))) == 3 * forward
    assert count(jax.grad(partial(loss, remat=True), argnums=(0, 1))) == 4 * forward


def test_a_roofline_by_hand():
    """On v5e: 394 TFLOP take 2 s, 819 GB through HBM 1 s, 50 GB to the neighbours half a second."""
    times = roofline(CHIPS["TPU v5 lite"], flops=394e12, hbm_traffic=819e9, ici_sent=50e9)
    assert times == (2.0, 1.0, 0.5)
    assert (times.fastest, times.slowest) == (2.0, 3.5)


# The step's pattern: on any mesh of data and fsdp, weights are gathered layer by layer, and no activation is summed or gathered.


def step_collectives(*, data: int, fsdp: int) -> list[hlo.Collective]:
    """Of a small model's step on eight virtual devices. Its token counts (prompt 14, prefix 22, suffix 11) are in no weight's shape."""
    run = config(variant="pico", action_dim=6, horizon=5, max_tokens=14, draws=2, batch_size=16, dtype="float32", scan_layers=True,
                 remat="full", mesh=dict(data=data, fsdp=fsdp, tensor=1))  # fmt: skip
    compiled = step.traced_step(run, programs.cameras(run), step.make_mesh(run, jax.devices())).lower().compile()
    return hlo.collectives(hlo.parse(compiled.as_text()))


@pytest.mark.parametrize(("data", "fsdp"), [(1, 8), (2, 4)])
def test_the_step_gathers_weights_and_no_activations(data, fsdp):
    collectives = step_collectives(data=data, fsdp=fsdp)
    gathered = [c.bytes for c in collectives if c.kind == "all-gather" for _ in range(c.count)]
    assert max(gathered) == 16 * 16 * 3 * 16 * 4  # the patch embedding: no stack of layers, no embedding table
    # The language model's gate and up projections: layer by layer in the forward pass, again in the backward pass; the last has no use.
    assert gathered.count(2 * 32 * 48 * 4) == 2 * (VARIANTS["pico"].gemma.depth - 1)
    # Only the prompt's rows of the embedding table change hands, once each way; its numbers are gathered to find them.
    assert [c.count for c in collectives if c.kind == "all-to-all"] == [1, 1]
    travelling = [c for c in collectives if c.kind != "all-to-all" and c.shape.startswith("f32")]
    assert [c for c in travelling if {14, 22, 11, 33} & dimensions(c)] == []


def dimensions(collective: hlo.Collective) -> set[int]:
    return {int(d) for part in collective.shape.split("[")[1:] for d in part.partition("]")[0].split(",") if d}


# Without a TPU, for a TPU.


def test_an_unknown_slice_is_one_line():
    """Also where libtpu is missing: then the line says so."""
    command = [sys.executable, "-m", "launch.train", "--config=configs/reach.py", "--compile_only", "--topology=v9:4x4"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: topology 'v9:4x4': ")


def test_a_topology_is_needed_to_compile_and_a_workdir_to_train():
    for flag, missing in (("--compile_only", "topology"), ("--nocompile_only", "workdir")):
        command = [sys.executable, "-m", "launch.train", "--config=configs/reach.py", flag]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 2
        assert process.stderr.splitlines()[-1] == f"error: flag --{missing} is missing"


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "changes", "message"),
    [
        ("v5e:3x4", {}, "topology 'v5e:3x4': INVALID_ARGUMENT"),
        ("v4:2x2x1", {}, "topology 'v4:2x2x1': expected chips v5e, v5p, v6e, found TPU v4"),
        ("v5e:2x2", dict(mesh=dict(data=-1, fsdp=3, tensor=1)), "mesh data=-1 fsdp=3 tensor=1 does not fit 4 devices"),
        ("v5e:2x2", dict(batch_size=6), "config.batch_size 6 is not a multiple of data x fsdp = 4"),
    ],
)
def test_what_cannot_be_compiled_is_refused(topology, changes, message):
    with pytest.raises(InputError, match=message):
        next(compile_only(config(**changes), topology))


@needs_libtpu
@pytest.mark.slow
def test_a_small_model_fits_one_chip():
    reports = list(compile_only(config(variant="pico", action_dim=6, horizon=4, max_tokens=12), "v5e:1x1"))
    assert [report.fits for report in reports] == [True, True]
    assert "train step on v5e:1x1: pico" in reports[0].text and "mesh data 1 x fsdp 1 x tensor 1" in reports[0].text
    assert "sampler on one v5e chip" in reports[1].text


@needs_libtpu
@pytest.mark.slow
def test_the_full_size_step_on_sixteen_chips():
    """Show 3 and 4: it fits with room, gathers are bfloat16 and of one weight of one layer, gradients leave by rings and scatters."""
    run = config(**FULL_SIZE, batch_size=64, mesh=dict(data=2, fsdp=8, tensor=1))
    step = programs.train_step(run, programs.topology_devices("v5e:4x4"))
    state = 4 * 4 * 3_238_048_528  # parameters, EMA and two moments in float32
    assert state / 8 < step.arguments < 1.05 * state / 8
    assert step.used < 15 * 2**30
    largest = 2 * 2048 * 16_384 * 2  # gate and up projections of one layer of the language model
    assert max(c.bytes for c in step.collectives if c.kind == "all-gather") == largest
    assert sum(c.count for c in step.collectives if c.kind == "all-gather" and c.bytes == largest) == 2 * 17
    assert step.model_flops / 64 == pytest.approx(11.6e12, rel=0.02)  # of one sample
    assert 1.2 < step.flops / step.model_flops < 4 / 3


@needs_libtpu
@pytest.mark.slow
def test_nothing_holds_the_full_model_while_it_is_created():
    """Parameters, EMA and moments on eight chips: arguments, outputs and temporaries are little more than an eighth of the state."""
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1, devices=programs.topology_devices("v5e:2x4"))
    model, optimizer = Pi0(VARIANTS["pi0"]), optax.adamw(1e-4)
    state = placement.abstract_state(model, optimizer, mesh)
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory = placement.jit_init(model, optimizer, mesh).lower(key).compile().memory_analysis()
    assert memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes < 1.2 * total / 8
