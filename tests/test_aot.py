"""Programs are compiled ahead of time.

The tests check what is read from XLA's text, the full-size model on eight virtual devices, and the
one on TPU slices (see below).
"""

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.memory import PeakMemory
from pi0_jax import checkpoints, sharding
from pi0_jax.aot import hlo, programs, slices
from pi0_jax.errors import InputError
from pi0_jax.models.pi0 import VARIANTS, Pi0
from pi0_jax.observation import CAMERA_SLOTS
from pi0_jax.train.chips import CHIPS, matmul_flops, roofline
from pi0_jax.train.config import MeshConfig
from pi0_jax.train.state import (
    abstract_run_state,
    abstract_state,
    bytes_per_device,
    jit_init,
    run_mesh,
)
from tests import policies
from tests.own_process import python, run_tests
from tests.step_data import adam, reach_config

# where make test puts libtpu: outside the path, since JAX looks for a TPU wherever it can import
# it
LIBTPU = Path(sys.prefix, "libtpu")

# The published model with three cameras, as it is trained on TPUs.
FULL_SIZE = dict(
    variant="pi0", datasets=("aloha_mobile",), weights=(1.0,), statistics_only=(), action_dim=32, horizon=50, max_tokens=48, draws=1,
    dtype="bfloat16", scan_layers=True, remat="full", augment=True, loss_dims="padded",
)  # fmt: skip


# What is read from XLA's text. Programs of eight virtual devices, small enough to count by hand.


def compiled_text(function, *arguments, out=None) -> str:
    return jax.jit(function, out_shardings=out).lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=4, tensor=1)


def test_collectives_inside_a_loop_count_as_often_as_it_runs(mesh):
    """Weights float32[5, 64, 32], split in four, are gathered one layer at a time.

    A device sends three quarters of each to its neighbour.
    """
    split, whole = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P())

    def layers(stack, x):
        return jax.lax.scan(
            lambda x, w: (
                jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)[:, :] @ w.T),
                None,
            ),
            x,
            stack,
        )[0]

    arguments = (
        jax.ShapeDtypeStruct((5, 64, 32), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=sharding.batch_sharding(mesh)),
    )
    program = hlo.parse(compiled_text(layers, *arguments))
    gathers = [
        c for c in hlo.collectives(program) if c.kind == "all-gather" and c.bytes == 64 * 32 * 4
    ]
    assert program.devices == 8
    assert [(c.times, c.group, c.sent) for c in gathers] == [(5, 4, 5 * 64 * 32 * 4 * 3 / 4)]


def test_a_sum_over_all_devices(mesh):
    """float32[16], of which each device holds half, is summed over two groups at a time."""
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding.batch_sharding(mesh))
    program = hlo.parse(compiled_text(lambda x: x.sum(axis=0), x, out=NamedSharding(mesh, P())))
    (collective,) = hlo.collectives(program)
    assert collective[:4] == ("all-reduce", 64, 8, 1)
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
    """A reduce-scatter is an all-reduce of which each device computes its part, or a ring of parts.

    The loop around the ring counts to 8 by twos.
    """
    program = hlo.parse(TPU_LOOP)
    scatter, ring = sorted(hlo.collectives(program), key=lambda c: c.times)
    array = 64 * 32 * 2
    assert scatter[:4] == ("reduce-scatter", array, 4, 1) and scatter.sent == array * 3 / 4
    assert ring[:4] == ("ring reduce-scatter", array, 4, 4) and ring.sent == 4 * array
    # HBM: negate reads and writes the array, the fusion writes a quarter, each collective moves its
    # own array, and the loop's counter has 12 bytes.
    assert (
        hlo.hbm_traffic(program) == 2 * array + array // 4 + scatter.bytes + 4 * ring.bytes + 4 * 12
    )


TPU_SCAN = """HloModule jit_f, num_partitions=1

%take (p.1: bf16[18,64,32], p.2: s32[]) -> bf16[64,32] {
  %p.1 = bf16[18,64,32]{2,1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %slice = bf16[1,64,32]{2,1,0} dynamic-slice(%p.1, %p.2, %p.2, %p.2), dynamic_slice_sizes={1,64,32}
  ROOT %layer = bf16[64,32]{1,0} bitcast(%slice)
}

%product (p.3: bf16[1152,32], p.4: s32[], p.5: bf16[8,64]) -> bf16[8,32] {
  %p.3 = bf16[1152,32]{1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  %p.5 = bf16[8,64]{1,0} parameter(2)
  %stack = bf16[18,64,32]{2,1,0} bitcast(%p.3)
  %weight = bf16[64,32]{1,0} fusion(%stack, %p.4), kind=kLoop, calls=%take
  ROOT %convolution = bf16[8,32]{1,0} convolution(%p.5, %weight), dim_labels=bf_io->bf
}

ENTRY %main (w: bf16[1152,32], i: s32[], x: bf16[8,64]) -> bf16[8,32] {
  %w = bf16[1152,32]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[8,64]{1,0} parameter(2)
  ROOT %fusion = bf16[8,32]{1,0} fusion(%w, %i, %x), kind=kOutput, calls=%product
}
"""


def test_a_layer_that_a_product_takes_from_a_stack_counts_alone():
    """Only the layer's slice counts, also where a fusion inside the product's fusion takes it.

    It is 64 x 32 of 18 x 64 x 32 weights, beside the input and the output.
    """
    assert hlo.hbm_traffic(hlo.parse(TPU_SCAN)) == 2 * (64 * 32 + 8 * 64 + 8 * 32) + 4


TPU_FUSIONS = """HloModule jit_f, num_partitions=1

%same (p.1: bf16[8,64]) -> bf16[8,1,64] {
  %p.1 = bf16[8,64]{1,0} parameter(0)
  ROOT %bitcast = bf16[8,1,64]{2,0,1} bitcast(%p.1)
}

%product (p.2: bf16[8,64], p.3: bf16[64,32]) -> bf16[8,32] {
  %p.2 = bf16[8,64]{1,0} parameter(0)
  %p.3 = bf16[64,32]{1,0} parameter(1)
  %reshaped = bf16[8,1,64]{2,0,1} fusion(%p.2), kind=kLoop, calls=%same
  ROOT %convolution = bf16[8,32]{1,0} convolution(%reshaped, %p.3), dim_labels=b0f_io->bf
}

%two (p.4: bf16[8,32], p.5: bf16[16,16]) -> (f32[8,32], bf16[16,16]) {
  %p.4 = bf16[8,32]{1,0} parameter(0)
  %p.5 = bf16[16,16]{1,0} parameter(1)
  %wide = f32[8,32]{1,0} convert(%p.4)
  ROOT %both = (f32[8,32]{1,0}, bf16[16,16]{1,0}) tuple(%wide, %p.5)
}

ENTRY %main (x: bf16[8,64], w: bf16[64,32], z: bf16[16,16]) -> bf16[16,16] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  %z = bf16[16,16]{1,0} parameter(2)
  %y = bf16[8,32]{1,0:S(1)} fusion(%x, %w), kind=kOutput, calls=%product
  %t = (f32[8,32]{1,0:S(1)}, bf16[16,16]{1,0}) fusion(%y, %z), kind=kLoop, calls=%two
  ROOT %out = bf16[16,16]{1,0} get-tuple-element(%t), index=1
}
"""


def test_an_array_that_a_product_takes_in_another_shape_is_read():
    """x and w are read. What is written stays on the chip, or is only handed on."""
    assert hlo.hbm_traffic(hlo.parse(TPU_FUSIONS)) == 2 * (8 * 64 + 64 * 32)


def test_flops_of_loops_gradients_and_rematerialisation():
    """Six times x[3, 4] @ w[4, 4]: 6 * 2*3*4*4 forward, and twice that backward.

    Where layers are computed again, the forward part counts once more.
    """

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
    """A v5e takes 2 s for 394 TFLOP, 1 s for 819 GB of HBM, 0.5 s for 50 GB to the neighbours."""
    times = roofline(CHIPS["TPU v5 lite"], flops=394e12, hbm_traffic=819e9, ici_sent=50e9)
    assert times == (2.0, 1.0, 0.5)
    assert (times.fastest, times.slowest) == (2.0, 3.5)


# The step has one pattern on any mesh of data and fsdp: weights are gathered layer by layer, and no
# activation is summed or gathered.


def step_collectives(*, data: int, fsdp: int) -> list[hlo.Collective]:
    """Returns the collectives of a small model's step on eight virtual devices.

    Its token counts (prompt 14, prefix 22, suffix 11) are in no weight's shape.
    """
    run = reach_config(variant="pico", action_dim=6, horizon=5, max_tokens=14, draws=2, batch_size=16, dtype="float32", scan_layers=True,
                 remat="full", mesh=dict(data=data, fsdp=fsdp, tensor=1))  # fmt: skip
    compiled = (
        programs.traced_step(run, programs.cameras(run), run_mesh(run, jax.devices()))
        .lower()
        .compile()
    )
    return hlo.collectives(hlo.parse(compiled.as_text()))


@pytest.mark.parametrize(("data", "fsdp"), [(1, 8), (2, 4)])
def test_the_step_gathers_weights_and_no_activations(data, fsdp):
    collectives = step_collectives(data=data, fsdp=fsdp)
    gathered = [c.bytes for c in collectives if c.kind == "all-gather" for _ in range(c.times)]
    # the patch embedding: no stack of layers, no embedding table
    assert max(gathered) == 16 * 16 * 3 * 16 * 4
    # The language model's gate and up projections are gathered layer by layer in the forward pass,
    # and again in the backward pass. Those of the last layer have no use.
    assert gathered.count(2 * 32 * 48 * 4) == 2 * (VARIANTS["pico"].gemma.depth - 1)
    # Only the prompt's rows of the embedding table change hands, once each way. Their numbers are
    # gathered to find them.
    assert [c.times for c in collectives if c.kind == "all-to-all"] == [1, 1]
    travelling = [c for c in collectives if c.kind != "all-to-all" and c.shape.startswith("f32")]
    assert [c for c in travelling if {14, 22, 11, 33} & dimensions(c)] == []


def dimensions(collective: hlo.Collective) -> set[int]:
    return {
        int(d)
        for part in collective.shape.split("[")[1:]
        for d in part.partition("]")[0].split(",")
        if d
    }


# Full size, on eight virtual devices: compiled, and nothing allocated.


@pytest.mark.slow
def test_the_full_size_step_gathers_one_layer_at_a_time():
    """Float32 travels here, because CPUs multiply bfloat16 numbers as float32."""
    run = reach_config(**FULL_SIZE, batch_size=8, mesh=dict(data=1, fsdp=8, tensor=1))
    compiled = (
        programs.traced_step(run, CAMERA_SLOTS, run_mesh(run, jax.devices())).lower().compile()
    )
    gathers = [c for c in hlo.collectives(hlo.parse(compiled.as_text())) if c.kind == "all-gather"]
    layer = 2 * 2048 * 16_384 * 4  # gate and up projections of one layer of the language model
    assert max(c.bytes for c in gathers) == layer
    # All layers but the last, whose prefix nobody reads; forward, and again in the backward pass.
    assert sum(c.times for c in gathers if c.bytes == layer) == 2 * 17
    state = 4 * 4 * 3_238_048_528  # parameters, EMA and two moments in float32
    assert state / 8 < compiled.memory_analysis().argument_size_in_bytes < 1.05 * state / 8


def test_eight_devices_hold_an_eighth_of_the_state_each():
    """A full-size restore creates an eighth on each device; the test below shows how it is read."""
    run = reach_config(**FULL_SIZE, mesh=dict(data=1, fsdp=8, tensor=1))
    each = bytes_per_device(abstract_run_state(run, run_mesh(run, jax.devices())))
    state = 4 * 4 * 3_238_048_528
    assert state / 8 < each < 1.01 * state / 8


def large_embedding_state():
    """Returns a state of 135 MB as shapes, and what makes it.

    Nearly all of it is four copies of one embedding table.
    """
    pico = VARIANTS["pico"]
    model = Pi0(dataclasses.replace(pico, gemma=dataclasses.replace(pico.gemma, vocab_size=2**18)))
    mesh, optimizer = sharding.make_mesh(data=1, fsdp=8, tensor=1), adam(1e-4)
    return abstract_state(model, optimizer, mesh), jit_init(model, optimizer, mesh)


def growth_while_restoring(workdir: str) -> int:
    """Bytes of memory that this process, with all devices and the host's part, takes at most."""
    abstract, _ = large_embedding_state()
    saved = checkpoints.RunCheckpoints(workdir, keep=1)
    with PeakMemory() as peak:
        jax.block_until_ready(saved.restore(1, abstract))
    saved.close()
    return peak.growth


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc"
)
def test_restoring_reads_each_part_once(tmp_path):
    """Restoring takes less than twice the state.

    The process has not used its memory yet. If arrays were read whole for each device, it would
    take eight times the state.
    """
    abstract, init = large_embedding_state()
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    saved = checkpoints.RunCheckpoints(tmp_path, keep=1)
    saved.save(init(jax.random.key(0)), policies.description(reach_config(), {}, position=1), {})
    saved.close()
    program = f"from tests.test_aot import growth_while_restoring; print(growth_while_restoring({str(tmp_path)!r}))"
    growth = int(python("-c", program).stdout)
    # The state is held once where it stays. The devices are in the host's memory here, so parts of
    # it are held once more on their way.
    assert total < growth < 2 * total


# The page of slices.


def test_a_page_keeps_its_rows_and_refuses_those_of_another_compiler():
    row = slices.Row.parse("v5e:4x4/64/2x8x1")
    line = f"| v5e:4x4 | 16 | 64 | 2 x 8 x 1 | 6.7 + 4.6 | `{row.flags}` |"
    made = dict(command="one", run_flags="--config=a.py", jax="0.10", libtpu="0.1")
    text = f"{slices.page_head(**made)}{line}\n"
    assert (
        row.flags
        == "--topology=v5e:4x4 --config.batch_size=64 --config.mesh.data=2 --config.mesh.fsdp=8 --config.mesh.tensor=1"
    )
    assert slices.kept_rows(text, slices.page_head(**made | {"command": "another"}), "tpu.md") == {
        row.flags: line
    }
    for other in ({"jax": "0.11"}, {"libtpu": "0.2"}, {"run_flags": "--config=b.py"}):
        with pytest.raises(InputError, match="tpu.md: its rows are of another run or compiler"):
            slices.kept_rows(text, slices.page_head(**made | other), "tpu.md")


@pytest.mark.parametrize("text", ["v5e:4x4", "v5e:4x4/64", "v5e:4x4/64/2x8", "v5e:4x4/64/2x8xa"])
def test_a_row_that_cannot_be_read(text):
    with pytest.raises(InputError, match=f"row '{text}': expected TOPOLOGY/BATCH"):
        slices.Row.parse(text)


class Chip:
    """A chip whose step takes so many GB: a state, and as much again for every sample."""

    def __init__(
        self, memory: float, state: float, a_sample: dict[str, float], most: float = math.inf
    ) -> None:
        self._memory, self._state, self._a_sample, self._most = memory, state, a_sample, most
        self.compiled: list[tuple[str, int]] = []

    def line(self, row: slices.Row) -> str:
        """Returns a line as the page has them; less remat and a larger batch use it better.

        Above `most` samples a larger batch uses it worse. The run's own remat is "full".
        """
        samples, remat = row.batch // 8, row.remat or "full"
        self.compiled.append((remat, samples))
        used = self._a_sample[remat] * samples
        if self._state + used > self._memory:
            cells = ["does not fit: too large", *[""] * 6]
        else:
            percent = {"full": 10, "dots": 18, "none": 22}[remat]
            percent += 10 * (math.log2(samples) if samples <= self._most else -1)
            cells = [f"{self._state:.1f} + {used:.1f}", f"{self._memory:.1f}", "1.0", "1.0", "1.0"]
            cells += ["1 to 2", f"{percent:.0f}% to 99%"]
        what = [row.topology, "8", str(row.batch), "1 x 8 x 1"]
        return " | ".join(["", *what, *cells, f"`{row.flags}`", ""]).strip()


def test_a_search_takes_the_remat_and_the_batch_that_use_the_slice_best():
    def found(chip: Chip) -> tuple[str, int, float]:
        best = slices.best_setting("v5e:2x4", MeshConfig(1, 8, 1), "full", chip.line)
        return best.remat, best.row.batch, best.utilisation

    chip = Chip(16.9, 6.7, {"full": 1.2, "dots": 2.5, "none": 30.0})
    # 10.2 GB hold 8 samples with "full" (40%), 4 with "dots" (38%), none with "none".
    assert found(chip) == ("full", 64, 0.4)
    tried = {"full": (4, 8, 16), "dots": (4, 8, 2), "none": (4, 2, 1)}
    assert chip.compiled == [(remat, n) for remat, samples in tried.items() for n in samples]
    assert found(Chip(33.6, 6.7, {"full": 1.2, "dots": 1.6, "none": 30.0})) == ("dots", 128, 0.58)
    # Where more samples are worse, the best is in the middle, and larger batches are not tried.
    chip = Chip(1000.0, 6.7, {"full": 1.2, "dots": 1.6, "none": 30.0}, most=4)
    assert found(chip) == ("none", 32, 0.42)
    assert {samples for remat, samples in chip.compiled if remat == "full"} == {4, 8, 2}
    # A small batch may be best, and no remat is tried that takes more than one that never fits.
    chip = Chip(16.9, 6.7, {"full": 9.0, "dots": 11.0, "none": 1.0})
    assert found(chip) == ("full", 8, 0.1)
    assert [samples for remat, samples in chip.compiled if remat == "dots"] == [4, 2, 1]
    assert "none" not in dict(chip.compiled)


def test_where_nothing_fits_the_nearest_is_named():
    chip = Chip(16.9, 51.8, {"full": 1.2, "dots": 2.5, "none": 30.0})
    with pytest.raises(InputError, match="v5e:2x4: nothing fits; .*batch_size=8 .*too large"):
        slices.best_setting("v5e:2x4", MeshConfig(1, 8, 1), "full", chip.line)


def test_a_page_compiles_what_it_lacks_and_ends_with_what_to_set(tmp_path, monkeypatch):
    chip = Chip(16.9, 6.7, {"full": 1.2, "dots": 2.5, "none": 30.0})
    run = dataclasses.replace(policies.run_config(), remat="full")
    monkeypatch.setattr(slices.Row, "line", lambda row, run: chip.line(row))
    head = slices.page_head(command="one", run_flags="--config=a.py", jax="0.10", libtpu="0.1")

    def search() -> str:
        page = slices.Page(tmp_path / "tpu.md", head, run, [], said=print)
        page.search("v5e:2x4/1x8x1")
        return (tmp_path / "tpu.md").read_text()

    text, compiled = search(), len(chip.compiled)
    assert text.splitlines()[-1].startswith("| v5e:2x4 | 1 x 8 x 1 | full | 8 | 64 | 16.3 | 16.9 |")
    assert search() == text and len(chip.compiled) == compiled
    with pytest.raises(InputError, match="search 'v5e:2x4': expected TOPOLOGY/DATAxFSDPxTENSOR"):
        slices.Page(tmp_path / "tpu.md", head, run, [], said=print).search("v5e:2x4")


# Without a TPU, for a TPU.


def refusal(*flags: str) -> str:
    """Returns the last line of the command with these flags, which it refuses."""
    ended = python("-m", "launch.train", "--config=configs/reach.py", *flags, status=2)
    return ended.stderr.splitlines()[-1]


def test_an_unknown_slice_is_one_line():
    """Where libtpu is missing, too, one line says so."""
    line = refusal("--compile_only", "--topology=v9:4x4")
    assert line.startswith("error: topology 'v9:4x4': ") and "expected a slice such as" in line


def test_a_topology_is_needed_to_compile_and_a_workdir_to_train():
    for flag, missing in (("--compile_only", "topology"), ("--nocompile_only", "workdir")):
        assert refusal(flag) == f"error: flag --{missing} is missing"


@pytest.mark.slow
@pytest.mark.skipif(
    not LIBTPU.is_dir(), reason="libtpu is not there: make test puts it where it is to be had"
)
def test_for_tpu_slices():
    """Runs tests/test_aot_tpu.py in a process that can import libtpu.

    It compiles the full-size step and sampler for v5e:4x4.
    """
    process = run_tests("tests/test_aot_tpu.py", PYTHONPATH=str(LIBTPU))
    assert process.returncode == 0, process.stdout + process.stderr
    assert "skipped" not in process.stdout.splitlines()[-1]
