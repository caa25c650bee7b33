"""Shows Meta-World once: data of its experts, training, rollouts with controls, and a page.

python -m launch.metaworld --simulator_python=PYTHON --output=runs/metaworld [--group=mt5] [--smoke]
It can be stopped at any time; the same command goes on.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from pi0_jax.errors import InputError

from . import app

# fmt: off
_SIMULATOR = flags.DEFINE_string("simulator_python", None,
    "Python that has Meta-World and this package: make metaworld-env.", required=True)
_OUTPUT = flags.DEFINE_string("output", "runs/metaworld", "Folder for data, run, rollouts, page.")
_GROUP = flags.DEFINE_enum("group", "mt5", ["mt1", "mt5", "mt10"], "Which tasks.")
_SEED = flags.DEFINE_integer("seed", 0, "Of data, training and rollouts.", lower_bound=0)
_EPISODES = flags.DEFINE_integer("episodes", 50, "Of each task and condition.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "A few episodes and a few dozen steps of every stage.")

_SMALL = {
    "make_metaworld_data": ["--episodes=4", "--val_episodes=2"],
    "train": ["--config.steps=20", "--config.warmup_steps=10", "--config.batch_size=16",
        "--config.validate_every=20", "--config.validation_frames=8", "--config.save_every=20"],
    "evaluate": ["--episodes=2", "--parallel=10"],
    "report": ["--frames=1"],
}
# fmt: on


@app.command
def main() -> int:
    output, seed, group = Path(_OUTPUT.value), _SEED.value, _GROUP.value
    simulator, run, evaluation = _SIMULATOR.value, output / "train", output / "evaluation"
    if not Path(simulator).is_file():
        raise InputError(f"--simulator_python: expected a Python, found none at {simulator}")
    # Prompts can be shuffled only among several tasks.
    shuffled = "" if group == "mt1" else "shuffled,"
    conditions = f"right,{shuffled}black,untrained,nearest_state,nearest_pixels"
    stages = {
        "make_metaworld_data": [f"--data_dir={output}/data", f"--tasks={group}", f"--seed={seed}",
            f"--simulator_python={simulator}"],
        "train": [f"--config=metaworld:{group}", f"--config.seed={seed}",
            f"--config.data_dir={output}/data", f"--workdir={run}"],
        "neighbours": [f"--checkpoint={run}", f"--output={output}/neighbours.npz"],
        "evaluate": [f"--env=metaworld_held:{group}", f"--checkpoint={run}",
            f"--conditions={conditions}", f"--policy_python={sys.executable}", f"--seed={seed}",
            f"--neighbours={output}/neighbours.npz", f"--episodes={_EPISODES.value}",
            "--parallel=25", "--record=1", f"--output={evaluation}"],
        "report": [f"--workdir={run}", f"--evaluation={evaluation}", f"--output={output}/report"],
    }  # fmt: skip
    start, took = time.monotonic(), {}
    for number, (stage, arguments) in enumerate(stages.items(), 1):
        small = _SMALL.get(stage, []) if _SMOKE.value else []
        python = simulator if stage == "evaluate" else sys.executable
        command = [python, "-m", f"{__package__}.{stage}", *arguments, *small]
        print(f"[{number}/{len(stages)}] {shlex.join(command)}", flush=True)
        begun = time.monotonic()
        if status := subprocess.call(command):
            return status
        took[stage] = time.monotonic() - begun
    parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in took.items())
    print(f"{(time.monotonic() - start) / 60:.1f} minutes: {parts}")
    return 0


if __name__ == "__main__":
    main()
