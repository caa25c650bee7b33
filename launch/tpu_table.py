"""Compiles a run for several TPU slices, and writes a page of what fits and how fast it could be.

docs/tpu.md names the command that made it.
"""

import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from absl import flags

from pi0_jax.aot import report
from pi0_jax.errors import InputError
from pi0_jax.train.config import from_mapping

from . import app, shared
from .recipes import config_flag, config_mapping

_CONFIG = config_flag()
_ROWS = flags.DEFINE_list(
    "rows",
    None,
    "TOPOLOGY/BATCH/DATAxFSDPxTENSOR for a training step, TOPOLOGY/sampler; such as v5e:4x4/64/2x8x1 or pi05@v5e:1x1/sampler.",
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The page, Markdown; written after every row. Rows that it has are not compiled again.",
)
flags.mark_flags_as_required(["config", "rows", "output"])


@app.command
def main() -> None:
    run, path = from_mapping(config_mapping(_CONFIG)), shared.needed(_OUTPUT)
    rows = [report.Row.parse(text) for text in shared.needed(_ROWS)]
    try:
        libtpu = version("libtpu")
    except PackageNotFoundError as error:
        raise InputError("libtpu is not installed: pip install pi0_jax[tpu]") from error
    about = report.page_head(
        command="python -m launch.tpu_table " + shlex.join(sys.argv[1:]),
        run_flags=shlex.join(
            argument for argument in sys.argv[1:] if argument.startswith("--config")
        ),
        jax=version("jax"),
        libtpu=libtpu,
    )
    output = Path(path)
    kept = report.kept_rows(output.read_text("utf-8"), about, path) if output.exists() else {}
    for row in rows:
        if row.flags not in kept:
            kept[row.flags] = row.line(run)
            print(kept[row.flags], flush=True)
        # The rows come in the order asked for, and older rows after them.
        lines = {row.flags: kept[row.flags] for row in rows if row.flags in kept} | kept
        output.with_suffix(".partial").write_text(
            about + "\n".join(lines.values()) + "\n", encoding="utf-8"
        )
        output.with_suffix(".partial").replace(output)


if __name__ == "__main__":
    main()
