"""The round trip of `launch.benchmark convert` works at toy size."""

from benchmarks.convert import benchmark_convert, table


def test_a_round_trip_is_measured_and_compared(tmp_path):
    there, back = benchmark_convert(tmp_path, to="openpi_jax", dtype="bfloat16", variant="nano")
    assert (there.conversion, back.conversion) == ("-> openpi_jax", "-> ours")
    assert there.written_gib > 0 and 0 < back.peak_gib < 4
    assert [path.name for path in tmp_path.iterdir()] == ["openpi_jax_bfloat16"]
    assert table([there, back]).count("bfloat16") == 2
