"""Compiles a run for several TPU slices, and writes a page of what fits and how fast it could be.

docs/tpu.md names the command that made it.
"""

import shlex
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from absl import flags

from pi0_jax.aot import slices
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
_SEARCH = flags.DEFINE_list(
    "search",
    [],
    "TOPOLOGY/DATAxFSDPxTENSOR: slices whose best remat and batch are searched, such as v5e:2x4/1x8x1.",
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
    rows = [slices.Row.parse(text) for text in shared.needed(_ROWS)]
    try:
        libtpu = version("libtpu")
    except PackageNotFoundError as error:
        raise InputError("libtpu is not installed: pip install pi0_jax[tpu]") from error
    about = slices.page_head(
        command="python -m launch.tpu_table " + shlex.join(sys.argv[1:]),
        run_flags=shlex.join(
            argument for argument in sys.argv[1:] if argument.startswith("--config")
        ),
        jax=version("jax"),
        libtpu=libtpu,
    )
    page = slices.Page(Path(path), about, run, rows, said=partial(print, flush=True))
    for row in rows:
        page.line_of(row)
    for text in shared.needed(_SEARCH):
        page.search(text)


if __name__ == "__main__":
    main()
