"""Rolls a policy out in closed loop: in the reach world, a Gymnasium environment, or a benchmark.

python -m launch.evaluate --checkpoint=DIR --output=DIR
python -m launch.evaluate --server=HOST:PORT --env=module:Env-v0 --output=DIR
python -m launch.evaluate --checkpoint=DIR --env=metaworld_held:mt5 --output=DIR \
    --policy_python=PYTHON    where the simulator is; the policy is served by another Python
"""

from pathlib import Path
from typing import Any

from absl import flags

from . import app

with app.one_line_errors():
    from pi0_jax.sim import benchmark
    from pi0_jax.sim.benchmark import families
    from pi0_jax.sim.evaluation import CONDITIONS

    from . import families as in_families
    from . import worlds

# fmt: off
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir or one checkpoint in it.")
_SERVER = flags.DEFINE_string("server", None, "HOST:PORT of launch.serve, instead of a checkpoint.")
_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File with the key that the server asks for.")
_ENV = flags.DEFINE_string("env", "reach",
    "reach, a Gymnasium ID (sim/gym_rollouts.py), or a family: libero:libero_goal, my_family.py:a,b.")
_CONDITIONS = flags.DEFINE_list("conditions", ["right"],
    f"Of {', '.join(CONDITIONS)}; in a family of {', '.join(benchmark.CONDITIONS)}.")
# Not given: 200, 0 and 50, or what the family's protocol says and a machine's memory holds.
_EPISODES = flags.DEFINE_integer("episodes", None, "Of each robot or task.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", None, "Of episodes and the policy's noise.", lower_bound=0)
_PARALLEL = flags.DEFINE_integer("parallel", None, "Environments; rows of a call.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; else one a core.", lower_bound=1)
_STEPS = flags.DEFINE_integer("num_steps", None, "Euler steps; else the run's.", lower_bound=1)
_RECORD = flags.DEFINE_integer("record", 2, "GIFs; in a family of each outcome.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None,
    "Folder for evaluation.json and rollouts/, which are replaced; a family's go on.", required=True)
flags.adopt_module_key_flags(in_families)
flags.adopt_module_key_flags(worlds)
# fmt: on


@app.command
def main() -> None:
    env, where = _ENV.value, (_CHECKPOINT.value, _SERVER.value)
    family = families.names_a_family(env)
    _refuse_unread(family)
    usual = families.find(env).family.usual if family else families.Usual(200, 0, 50)
    given = zip((_EPISODES.value, _SEED.value, _PARALLEL.value), usual, strict=True)
    episodes, seed, parallel = (other if value is None else value for value, other in given)
    if _SERVER.value:
        print(f"connecting to {_SERVER.value}, which may still be compiling", flush=True)
    how: dict[str, Any] = dict(key_file=_KEY_FILE.value, num_steps=_STEPS.value,
                               workers=_WORKERS.value, output=Path(_OUTPUT.value))  # fmt: skip
    if not family:
        return worlds.run(
            env, *where, conditions=_CONDITIONS.value, episodes=episodes, seed=seed,
            parallel=parallel, record=_RECORD.value, **how)  # fmt: skip
    plan = env, tuple(_CONDITIONS.value), episodes, seed, parallel, 0, "", _RECORD.value
    return in_families.run(benchmark.Plan(*plan), *where, **how)


def _refuse_unread(family: bool) -> None:
    other, kind = (worlds, "reach or Gymnasium") if family else (in_families, "a family")
    theirs = {f.name for f in flags.FLAGS.flags_by_module_dict()[other.__name__]}
    unread = dict.fromkeys(theirs - {"execute_steps"}, f"--env of {kind}, found --env={_ENV.value}")
    if _ENV.value == "reach":
        unread |= dict.fromkeys(worlds.OF_GYMNASIUM, "--env of Gymnasium, found --env=reach")
    if _SERVER.value:
        for flag in ("num_steps", "policy_python", "policy_robot"):
            unread[flag] = "--checkpoint, found --server"
    unread |= {"api_key_file": "--server, found --checkpoint"} if _CHECKPOINT.value else {}
    app.refuse_given(unread)


if __name__ == "__main__":
    main()
