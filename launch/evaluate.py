"""Rolls a policy out in closed loop, in the reach world or any Gymnasium environment.

python -m launch.evaluate --checkpoint=DIR --output=DIR
python -m launch.evaluate --server=HOST:PORT --env=module:Env-v0 --output=DIR
"""

import time
from functools import partial
from pathlib import Path

from absl import flags

from pi0_jax.embodiments.keys import check_prompt

from . import app, shared

with app.one_line_errors():
    from pi0_jax.evaluated_policies import contestants
    from pi0_jax.sim.evaluation import CONDITIONS, evaluate, save, table
    from pi0_jax.sim.gym_rollouts import TERMINATED, gym_setting
    from pi0_jax.sim.reach_rollouts import reach_setting

# fmt: off
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir or one checkpoint in it.")
_SERVER = flags.DEFINE_string("server", None, "HOST:PORT of launch.serve, instead of a checkpoint.")
_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File with the key that the server asks for.")
_ENV = flags.DEFINE_string("env", "reach", "reach, or a Gymnasium ID (sim/gym_rollouts.py).")
_ENV_ARGS = flags.DEFINE_string("env_args", "{}", "JSON: arguments for gymnasium.make.")
_EMBODIMENT = flags.DEFINE_string("embodiment", None,
    "Record of the robot in --env, a name or a .json file; the policy's if not given.")
_SUCCESS = flags.DEFINE_string("success", "success", f"Key of --env's info, or {TERMINATED}.")
_PROMPT = flags.DEFINE_string("prompt", None, "Instruction, where observations carry none.")
_ROBOTS = flags.DEFINE_list("robots", None,
    "Robots to try; in the reach world all that it has, elsewhere the only one, if not given.")
_CONDITIONS = flags.DEFINE_list("conditions", ["right"], f"Of {', '.join(CONDITIONS)}.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Of each robot and condition.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the episodes and the policy's noise.", lower_bound=0)
_PARALLEL = flags.DEFINE_integer("parallel", 50, "Environments; rows of a call.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; else one a core.", lower_bound=1)
_STEPS = flags.DEFINE_integer("num_steps", None,
    "Euler steps of a checkpoint's policy; the run's if not given.", lower_bound=1)
_RECORD = flags.DEFINE_integer("record", 2, "Episodes of each case to save as GIF.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None,
    "Folder for evaluation.json and rollouts/; what it holds of them is replaced.", required=True)
# fmt: on
_CACHE = shared.compilation_cache()


@app.command
def main() -> None:
    shared.tell_and_keep(_CACHE)
    if _PROMPT.value is not None:
        check_prompt(_PROMPT.value, "--prompt")
    start, reach = time.perf_counter(), _ENV.value == "reach"
    gym = partial(
        gym_setting, env=_ENV.value, arguments=_ENV_ARGS.value, success=_SUCCESS.value,
        prompt=_PROMPT.value,
    )  # fmt: skip
    policies = contestants(
        _CHECKPOINT.value, _SERVER.value, api_key_file=_KEY_FILE.value, in_reach=reach,
        robots=_ROBOTS.value, conditions=_CONDITIONS.value, embodiment=_EMBODIMENT.value,
        num_steps=_STEPS.value, seed=_SEED.value,
    )  # fmt: skip
    if _SERVER.value:
        print(f"connecting to {_SERVER.value}, which may still be compiling", flush=True)
    with policies as (some, source):
        found = evaluate(
            some, reach_setting if reach else gym, episodes=_EPISODES.value, seed=_SEED.value,
            parallel=_PARALLEL.value, record=_RECORD.value, directory=Path(_OUTPUT.value),
            workers=_WORKERS.value,
        )  # fmt: skip
    print(table(found.rows))
    save(Path(_OUTPUT.value), found.rows, checkpoint=source, seed=_SEED.value)
    total = time.perf_counter() - start
    shares = ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in found.seconds.items())
    print(f"{total:.0f} s, of it {shares}; written to {_OUTPUT.value}")


if __name__ == "__main__":
    main()
