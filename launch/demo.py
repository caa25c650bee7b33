"""Shows everything once: makes data, trains on them, rolls the policy out and writes a report.

python -m launch.demo --output=runs/reach           after a minute it says how long it will take
python -m launch.demo --output=runs/smoke --smoke   the same in miniature: nothing is learnt
It can be stopped at any time; the same command goes on.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from pi0_jax.train.config import CONFIG_FILE
from pi0_jax.train.metrics import METRICS_FILE, read_metrics

from . import app

_OUTPUT = flags.DEFINE_string("output", "runs/reach", "Folder for data, run, rollouts and report.")
_SEED = flags.DEFINE_integer("seed", 0, "Of data, training and rollouts.", lower_bound=0)
_EPISODES = flags.DEFINE_integer("episodes", 100, "Of each robot and condition.", lower_bound=1)
_SMOKE = flags.DEFINE_bool("smoke", False, "A few episodes and a few dozen steps of every stage.")

# After this time the demo says how long it will take.
_TELL_SECONDS = 60.0
# Seconds of evaluation and report for each second of training, as measured.
_AFTER_TRAINING = 0.25
_SMALL = {
    "make_reach_data": "--episodes=16 --val_episodes=4 --heldout_episodes=4",
    "train": "--config.steps=40 --config.warmup_steps=10 --config.batch_size=16"
    " --config.validate_every=20 --config.validation_frames=8 --config.save_every=20",
    "evaluate": "--episodes=4 --record=1",
    "report": "--frames=1",
}


@app.command
def main() -> int:
    output, seed = Path(_OUTPUT.value), _SEED.value
    run, evaluation = output / "train", output / "evaluation"
    stages = {
        "make_reach_data": f"--data_dir={output}/data --seed={seed}",
        "train": f"--config=reach --config.seed={seed} --config.data_dir={output}/data --workdir={run}",
        "evaluate": f"--checkpoint={run} --conditions=right,shuffled,untrained --seed={seed}"
        f" --episodes={_EPISODES.value} --output={evaluation}",
        "report": f"--workdir={run} --evaluation={evaluation} --output={output}/report",
    }
    start = time.monotonic()
    for number, (stage, arguments) in enumerate(stages.items(), 1):
        small = _SMALL[stage].split() if _SMOKE.value else []
        command = ["-m", f"{__package__}.{stage}", *arguments.split(), *small]
        print(f"[{number}/{len(stages)}] python {' '.join(command)}", flush=True)
        process, told = subprocess.Popen([sys.executable, *command]), stage != "train"
        while (status := process.poll()) is None:
            time.sleep(0.1 if told else 1.0)
            told = told or _tell(run, time.monotonic() - start)
        if status:
            return status
    print(f"the demo took {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


def _tell(run: Path, elapsed: float) -> bool:
    """Says how long the demo will take, once that is known, and returns whether it has."""
    if elapsed < _TELL_SECONDS or not (run / METRICS_FILE).exists():
        return False
    lines = [line for line in read_metrics(run) if "steps_per_second" in line]
    if len(lines) < 3:
        return False
    left = json.loads((run / CONFIG_FILE).read_text())["steps"] - lines[-1]["step"]
    seconds = (1 + _AFTER_TRAINING) * left / lines[-1]["steps_per_second"]
    print(f"\nThe demo takes about {max(1, round(seconds / 60))} minutes more on this machine. You can"
          " stop it with Ctrl-C; the same command goes on.", flush=True)  # fmt: skip
    return True


if __name__ == "__main__":
    main()
