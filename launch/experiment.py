"""Runs an experiment of the laboratory and writes its page: python -m launch.experiment NAME

Every seed is trained and measured in a process of one thread. It can be stopped at any time; the
same command goes on. docs/lab.md says how an experiment is added.
"""

import shlex
import sys
from functools import partial
from pathlib import Path

from absl import flags

from . import app, shared

with app.one_line_errors():
    from pi0_jax.lab import harness, pages

# fmt: off
_SEEDS = flags.DEFINE_integer("seeds", None, "Else as many as the experiment says.", lower_bound=1)
_PILOT = flags.DEFINE_bool("pilot", False, "On four other seeds, for what n seeds can show.")
_QUICK = flags.DEFINE_bool("quick", False, "In miniature, to see that it runs: nothing is learnt.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder; runs/lab, or with --quick runs/lab_quick.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Else one for each core.", lower_bound=1)
_CACHE = shared.compilation_cache()
# fmt: on


@partial(app.command, argument="an experiment's name")
def main(name: str) -> None:
    output = Path(_OUTPUT.value or ("runs/lab_quick" if _QUICK.value else "runs/lab"))
    places = "--output", "--compilation_cache"  # of this machine, and nothing follows from them
    told = [argument for argument in sys.argv[1:] if not argument.startswith(places)]
    options = harness.Options(
        output, _SEEDS.value, _PILOT.value, _QUICK.value, _PROCESSES.value, _CACHE.value,
        shlex.join(["python", "-m", "launch.experiment", *told]),
    )  # fmt: skip
    results = harness.run(harness.find(name), options, partial(print, flush=True))
    print(f"page: {pages.write_page(results)}, overview: {pages.write_overview(output)}")


if __name__ == "__main__":
    main()
