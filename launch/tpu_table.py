"""Compiles a run for several TPU slices and writes what fits, and how fast it could be, as a page: docs/tpu.md names its command."""

import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import app
from pi0_jax.ahead import page
from pi0_jax.config import from_mapping

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; single fields by --config.field=value.")
_ROWS = flags.DEFINE_list("rows", None, "TOPOLOGY/BATCH/DATAxFSDPxTENSOR for a training step, TOPOLOGY/sampler; such as v5e:4x4/64/2x8x1.")
_OUTPUT = flags.DEFINE_string("output", None, "The page, Markdown; written anew after every row.")
flags.mark_flags_as_required(["config", "rows", "output"])


def main() -> None:
    run, rows = from_mapping(_CONFIG.value.to_dict()), [page.Row.parse(text) for text in _ROWS.value]
    how = dict(
        command="python -m launch.tpu_table " + shlex.join(sys.argv[1:]),
        run_flags=shlex.join(argument for argument in sys.argv[1:] if argument.startswith("--config")),
        jax=version("jax"),
        libtpu=version("libtpu"),
    )
    lines = []
    for row in rows:
        lines.append(row.line(run))
        print(lines[-1], flush=True)
        Path(_OUTPUT.value).write_text(page.markdown(lines, **how), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
