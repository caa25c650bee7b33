"""Writes a page about a run.

python -m launch.report --workdir=DIR --output=DIR [--evaluation=DIR]
"""

from pathlib import Path

from absl import flags

from pi0_jax.report.run_page import write_report

from . import app, shared

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
_EVALUATION = flags.DEFINE_string("evaluation", None, "Folder that launch.evaluate wrote.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the page.", required=True)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the datasets are, if not where the run's config says."
)
_FRAMES = flags.DEFINE_integer("frames", 4, "Held-out frames to show per dataset.", lower_bound=1)
_CACHE = shared.compilation_cache()


@app.command
def main() -> None:
    shared.tell_and_keep(_CACHE)
    evaluation = Path(_EVALUATION.value) if _EVALUATION.value else None
    page = write_report(
        Path(_WORKDIR.value),
        evaluation,
        Path(_OUTPUT.value),
        data_dir=_DATA_DIR.value,
        frames=_FRAMES.value,
    )
    print(f"report: {page}")


if __name__ == "__main__":
    main()
