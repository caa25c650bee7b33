"""Rolls a policy out in closed loop, in the reach world or any Gymnasium environment.

python -m launch.evaluate --checkpoint=DIR --output=DIR
python -m launch.evaluate --server=HOST:PORT --env=module:Env-v0 --output=DIR
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from absl import flags

from pi0_jax.checkpoints import find, read_description
from pi0_jax.embodiments import Embodiment
from pi0_jax.embodiments.keys import check_prompt
from pi0_jax.errors import InputError
from pi0_jax.serve import api_key

from . import app

with app.optional_imports():
    from pi0_jax.evaluated_policies import opened, served
    from pi0_jax.serve.client import Client
    from pi0_jax.sim.evaluation import CONDITIONS, Contestant, evaluate, save, table
    from pi0_jax.sim.gym_rollouts import TERMINATED, gym_setting
    from pi0_jax.sim.reach_rollouts import in_reach_world, reach_setting
    from pi0_jax.sim.worlds import Setting

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
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes that simulate and render; one per core if not given.", lower_bound=1
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


def _setting() -> Callable[[Embodiment], AbstractContextManager[Setting]]:
    """Returns what opens the worlds of a robot, in a worker process."""
    if _ENV.value == "reach":
        return reach_setting
    return partial(
        gym_setting,
        env=_ENV.value,
        arguments=_ENV_ARGS.value,
        success=_SUCCESS.value,
        prompt=_PROMPT.value,
    )


@app.command
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
    start = time.perf_counter()
    with contextlib.closing(_client()) as client:
        some, source = _contestants(client)
        found = evaluate(
            some,
            _setting(),
            episodes=_EPISODES.value,
            seed=_SEED.value,
            parallel=_PARALLEL.value,
            record=_RECORD.value,
            directory=Path(_OUTPUT.value),
            workers=_WORKERS.value,
        )
    print(table(found.rows))
    save(Path(_OUTPUT.value), found.rows, checkpoint=source, seed=_SEED.value)
    total = time.perf_counter() - start
    shares = ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in found.seconds.items())
    print(f"{total:.0f} s, of it {shares}; written to {_OUTPUT.value}")


def _client() -> Client:
    """Returns a client of --server; it connects when it is used."""
    return Client(_SERVER.value or "", api_key=api_key.read(_KEY_FILE.value), timeout=600.0)


def _contestants(client: Client) -> tuple[list[Contestant], str]:
    """Returns the policies to evaluate, and where they come from."""
    conditions, embodiment = _CONDITIONS.value, _EMBODIMENT.value
    if _SERVER.value:
        # The first connection waits while the server compiles.
        print(f"connecting to {_SERVER.value}", flush=True)
        return served(client, conditions=conditions, embodiment=embodiment), _SERVER.value
    checkpoint = app.needed(_CHECKPOINT)
    step = find(checkpoint)
    robots: Sequence[str | None] = _ROBOTS.value or [None]
    if _ENV.value == "reach" and not _ROBOTS.value:
        robots = in_reach_world(read_description(step).robots)
    some = opened(
        checkpoint, robots=robots, conditions=conditions, embodiment=embodiment,
        num_steps=_STEPS.value, seed=_SEED.value,
    )  # fmt: skip
    return some, str(step)


if __name__ == "__main__":
    main()
