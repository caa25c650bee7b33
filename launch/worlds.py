"""Rolls policies out in the reach world or in Gymnasium, with JAX in this process or behind a server.

See launch.evaluate.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from pi0_jax.embodiments.keys import check_prompt
from pi0_jax.errors import InputError
from pi0_jax.sim.evaluation import evaluate, save, table

from . import app, shared

# fmt: off
_ENV_ARGS = flags.DEFINE_string("env_args", "{}", "JSON: arguments for gymnasium.make.")
_EMBODIMENT = flags.DEFINE_string("embodiment", None,
    "Record of the robot in --env, a name or a .json file; the policy's if not given.")
_SUCCESS = flags.DEFINE_string("success", "success", "Key of --env's info, or terminated.")
_PROMPT = flags.DEFINE_string("prompt", None, "Instruction, where observations carry none.")
_ROBOTS = flags.DEFINE_list("robots", None,
    "Robots to try; in the reach world all that it has, elsewhere the only one, if not given.")
EXECUTE_STEPS = flags.DEFINE_integer("execute_steps", None,
    "Actions of a chunk that are executed; the record's if not given.", lower_bound=1)
_ENSEMBLE = flags.DEFINE_float("temporal_ensemble", None, "Instead, a chunk at every tick, and the"
    " mean of what all say about it; a newer one has exp(-this) of the weight (ACT: 0.01).",
    lower_bound=0.0)
# fmt: on
OF_GYMNASIUM = ("env_args", "success", "prompt")  # what the reach world does not read
_CACHE = shared.compilation_cache()


def run(
    env: str, checkpoint: str | None, server: str | None, *,
    key_file: str | None, conditions: list[str], episodes: int, seed: int, parallel: int,
    workers: int | None, num_steps: int | None, record: int, output: Path,
) -> None:  # fmt: skip
    """Evaluates, prints the table and writes it; the arguments are launch.evaluate's flags."""
    try:
        shared.tell_and_keep(_CACHE)
    except ModuleNotFoundError as error:
        expected = f"expected a family, metaworld:mt5 or my_family.py:task, without {error.name}"
        raise InputError(f"--env={env}: {expected}") from error
    from pi0_jax.evaluated_policies import contestants
    from pi0_jax.sim.gym_rollouts import gym_setting
    from pi0_jax.sim.reach_rollouts import reach_setting

    if _PROMPT.value is not None:
        check_prompt(_PROMPT.value, "--prompt")
    start, reach = time.perf_counter(), env == "reach"
    if _ENSEMBLE.value is not None:
        app.refuse_given({EXECUTE_STEPS.name: "open loop, found --temporal_ensemble"})
    how: dict[str, Any] = {"execute_steps": EXECUTE_STEPS.value, "ensemble": _ENSEMBLE.value}
    gym = partial(
        gym_setting, env=env, arguments=_ENV_ARGS.value, success=_SUCCESS.value,
        prompt=_PROMPT.value,
    )  # fmt: skip
    policies = contestants(
        checkpoint, server, api_key_file=key_file, in_reach=reach, robots=_ROBOTS.value,
        conditions=conditions, embodiment=_EMBODIMENT.value, num_steps=num_steps, seed=seed,
    )  # fmt: skip
    with policies as (some, source):
        found = evaluate(
            some, reach_setting if reach else gym, episodes=episodes, seed=seed,
            parallel=parallel, record=record, directory=output, workers=workers, **how,
        )  # fmt: skip
    print(table(found.rows))
    save(output, found.rows, checkpoint=source, seed=seed, **how)
    total = time.perf_counter() - start
    shares = ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in found.seconds.items())
    print(f"{total:.0f} s, of it {shares}; written to {output}")
