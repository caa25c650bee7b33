"""Rolls a policy out in closed loop, in the reach world or any Gymnasium environment, from a checkpoint or through a server.

python -m launch.evaluate --checkpoint=DIR --output=DIR
python -m launch.evaluate --server=HOST:PORT --env=module:Env-v0 --output=DIR
"""

import time
from contextlib import AbstractContextManager
from pathlib import Path

from absl import flags

from launch import app
from pi0_jax.checkpoints import find, read_description
from pi0_jax.contestants import opened, served
from pi0_jax.embodiments import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.observation_keys import check_prompt
from pi0_jax.serve import api_key
from pi0_jax.serve.client import Client
from pi0_jax.sim.evaluation import CONDITIONS, evaluate, save, table
from pi0_jax.sim.gym_rollouts import TERMINATED, gym_setting
from pi0_jax.sim.reach_rollouts import in_reach_world, reach_setting
from pi0_jax.sim.rollouts import Setting

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir or one checkpoint in it.")
_SERVER = flags.DEFINE_string("server", None, "HOST:PORT of launch.serve, instead of a checkpoint.")
_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File with the key that the server asks for.")
_ENV = flags.DEFINE_string(
    "env", "reach", "reach, or a Gymnasium ID; see pi0_jax/sim/gym_rollouts.py."
)
_ENV_ARGS = flags.DEFINE_string("env_args", "{}", "JSON: arguments for gymnasium.make.")
_EMBODIMENT = flags.DEFINE_string(
    "embodiment",
    None,
    "Record of the robot in --env, a name or a .json file; the policy's if not given.",
)
_SUCCESS = flags.DEFINE_string(
    "success", "success", f"Key of an environment's info, or {TERMINATED}."
)
_PROMPT = flags.DEFINE_string(
    "prompt", None, "Instruction, where an environment's observations carry none."
)
_ROBOTS = flags.DEFINE_list(
    "robots",
    None,
    "Robots to try; in the reach world all that it has, elsewhere the only one, if not given.",
)
_CONDITIONS = flags.DEFINE_list("conditions", ["right"], f"Of {', '.join(CONDITIONS)}.")
_EPISODES = flags.DEFINE_integer(
    "episodes", 200, "Episodes of each robot and condition.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Keys the episodes' seeds, and the policy's noise.", lower_bound=0
)
_PARALLEL = flags.DEFINE_integer(
    "parallel", 50, "Environments, and rows of a policy call.", lower_bound=1
)
_STEPS = flags.DEFINE_integer(
    "num_steps",
    None,
    "Euler steps of a checkpoint's policy; the run's if not given.",
    lower_bound=1,
)
_RECORD = flags.DEFINE_integer("record", 2, "Episodes of each case to save as GIF.", lower_bound=0)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for evaluation.json and rollouts/; what it holds of them is replaced.",
    required=True,
)
_CACHE = app.compilation_cache()


def _setting(record: Embodiment) -> AbstractContextManager[Setting]:
    if _ENV.value == "reach":
        return reach_setting(record)
    return gym_setting(
        record,
        env=_ENV.value,
        arguments=_ENV_ARGS.value,
        success=_SUCCESS.value,
        prompt=_PROMPT.value,
    )


def main() -> None:
    app.tell_and_keep(_CACHE)
    if not _CONDITIONS.value or bool(_CHECKPOINT.value) == bool(_SERVER.value):
        raise InputError("expected --conditions, and either --checkpoint or --server")
    if _SERVER.value and (_ROBOTS.value or _STEPS.value):
        raise InputError(
            "--robots, --num_steps: expected with --checkpoint; a server's are its own"
        )
    if _KEY_FILE.value and not _SERVER.value:
        raise InputError("--api_key_file: expected with --server")
    if _PROMPT.value is not None:
        check_prompt(_PROMPT.value, "--prompt")
    output, start = Path(_OUTPUT.value), time.perf_counter()
    what = dict(conditions=_CONDITIONS.value, embodiment=_EMBODIMENT.value)
    with Client(
        _SERVER.value or "", api_key=api_key.read(_KEY_FILE.value), timeout=600.0
    ) as client:  # connects when it is used
        if _SERVER.value:
            # It may take as long as the server compiles.
            print(f"connecting to {_SERVER.value}", flush=True)
            some, source = served(client, **what), _SERVER.value
        else:
            step = find(_CHECKPOINT.value)
            robots = _ROBOTS.value or (
                in_reach_world(read_description(step).robots) if _ENV.value == "reach" else [None]
            )
            some = opened(
                _CHECKPOINT.value, robots=robots, num_steps=_STEPS.value, seed=_SEED.value, **what
            )
            source = str(step)
        how = dict(
            episodes=_EPISODES.value,
            seed=_SEED.value,
            parallel=_PARALLEL.value,
            record=_RECORD.value,
        )
        rows = evaluate(some, _setting, **how, directory=output)
    print(table(rows))
    save(output, rows, checkpoint=source, seed=_SEED.value)
    print(f"{time.perf_counter() - start:.0f} s; written to {output}")


if __name__ == "__main__":
    app.run(main)
