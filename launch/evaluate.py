"""Rolls a checkpoint out in closed loop: python -m launch.evaluate --checkpoint=DIR --env=reach --output=DIR."""

import json
import shutil
import time
from functools import partial
from pathlib import Path

from absl import flags

from launch import app
from pi0_jax.checkpoints import find
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.sim.evaluation import CONDITIONS, Case, evaluate, table, to_json
from pi0_jax.sim.reach import HELD_OUT_ROBOT, ROBOTS

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir or one checkpoint in it.", required=True)
_ENV = flags.DEFINE_enum("env", "reach", ["reach"], "The world.")
_ROBOTS = flags.DEFINE_list("robots", [*ROBOTS, HELD_OUT_ROBOT], "Robots to try.")
_CONDITIONS = flags.DEFINE_list("conditions", ["right"], f"Of {', '.join(CONDITIONS)}.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Episodes of each robot and condition.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Keys blocks, starts, prompts and the policy's noise.", lower_bound=0)
_PARALLEL = flags.DEFINE_integer("parallel", 50, "Environments, and rows of a policy call.", lower_bound=1)
_STEPS = flags.DEFINE_integer("num_steps", None, "Euler steps; the run's if not given.", lower_bound=1)
_RECORD = flags.DEFINE_integer("record", 2, "Episodes of each case to save as GIF.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for evaluation.json and rollouts/; what it holds of them is replaced.", required=True)


def main() -> None:
    for condition in _CONDITIONS.value:
        if condition not in CONDITIONS:
            raise InputError(f"--conditions: {condition!r} is unknown; expected some of {', '.join(CONDITIONS)}")
    if not (_CONDITIONS.value and _ROBOTS.value):
        raise InputError("--conditions and --robots: expected at least one each")
    trained = Policy.open(_CHECKPOINT.value, num_steps=_STEPS.value)
    untrained = trained.untrained(_SEED.value) if "untrained" in _CONDITIONS.value else None
    acts = {}
    for case in (Case(robot, condition) for condition in _CONDITIONS.value for robot in _ROBOTS.value):
        policy = untrained if case.condition == "untrained" else trained
        policy.robot(case.robot)  # an unknown robot is refused before anything runs
        acts[case] = partial(policy.act, robot=case.robot)
    output = Path(_OUTPUT.value)
    shutil.rmtree(output / "rollouts", ignore_errors=True)
    (output / "evaluation.json").unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    rows = evaluate(
        acts, episodes=_EPISODES.value, seed=_SEED.value, parallel=_PARALLEL.value, record=_RECORD.value, directory=output,
        execute_steps={robot: trained.robot(robot).embodiment.execute_steps for robot in _ROBOTS.value},
    )  # fmt: skip
    print(table(rows))
    record = {"checkpoint": str(find(_CHECKPOINT.value)), "seed": _SEED.value, "rows": to_json(rows)}
    temporary = output / "evaluation.tmp"
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(output / "evaluation.json")
    print(f"{time.perf_counter() - start:.0f} s; written to {output}")


if __name__ == "__main__":
    app.run(main)
