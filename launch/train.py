"""Trains π0, or goes on where the workdir stopped.

python -m launch.train --config=reach --workdir=DIR

It goes on from the newest checkpoint that is whole, or from --step. SIGTERM, SIGINT (Ctrl-C) and
SIGHUP save and end with status 0; a second signal ends at once.

Several processes: on TPU pods, SLURM and Open MPI they are found. Elsewhere each process gets the
flags below, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

With --config_help it explains every field that a config may state, with its default.
With --compile_only --topology=v5e:8x8 it says whether the run fits that TPU slice, on any machine:
bytes, collectives, predicted time.
"""

from absl import flags

from pi0_jax.aot.report import compile_only
from pi0_jax.train import distributed
from pi0_jax.train.config import explain, from_mapping
from pi0_jax.train.loop import train
from pi0_jax.train.metrics import Profile

from . import app, shared
from .recipes import config_flag, config_mapping

# fmt: off
_CONFIG = config_flag()
_CONFIG_HELP = flags.DEFINE_bool("config_help", False,
    "Print all fields of a config: type, default, meaning; no --config needed.")
_WORKDIR = flags.DEFINE_string("workdir", None,
    "Folder, or gs:// or s3:// URL, of the run: checkpoints, metrics.")
_PROFILE = flags.DEFINE_string("profile", None,
    "START:STEPS: a trace of STEPS steps, after START, in workdir/profile.")
_STEP = flags.DEFINE_integer("step", None,
    "Go on from this checkpoint; later ones are moved aside.", lower_bound=0)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None,
    "host:port of process 0, on which nothing else listens.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None,
    "1: alone, without looking for others.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "From 0.", lower_bound=0)
_COMPILE_ONLY = flags.DEFINE_bool("compile_only", False,
    "Compile step and sampler for --topology; status 1 if they do not fit.")
_TOPOLOGY = flags.DEFINE_string("topology", None,
    "A TPU slice: v5e:4x4, v6e:8x8, v5p:4x4x4; a single chip: v5e:1x1, v5p:1x1x1.")
_SILENCE = flags.DEFINE_integer("silence_seconds", distributed.SILENCE_SECONDS,
    "After so long without a word from a process the others end.", lower_bound=5)
_CACHE = shared.compilation_cache()
# fmt: on


@app.command
def main() -> int | None:
    if _CONFIG_HELP.value:
        print(explain())
        return 0
    shared.needed(_CONFIG)
    place = shared.needed(_TOPOLOGY if _COMPILE_ONLY.value else _WORKDIR)
    run = from_mapping(config_mapping(_CONFIG))
    if _COMPILE_ONLY.value:
        fits = True
        for report in compile_only(run, place):
            print(report.text, flush=True)
            fits = fits and report.fits
        return 0 if fits else 1
    profile = Profile.parse(_PROFILE.value) if _PROFILE.value else None
    distributed.initialize(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, silence_seconds=_SILENCE.value
    )
    shared.tell_and_keep(_CACHE)
    train(run, place, profile=profile, silence_seconds=_SILENCE.value, step=_STEP.value)
    return 0


if __name__ == "__main__":
    main()
