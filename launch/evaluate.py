"""Rolls a policy out in closed loop: in the reach world, a Gymnasium environment, or a benchmark.

python -m launch.evaluate --checkpoint=DIR --output=DIR
python -m launch.evaluate --server=HOST:PORT --env=module:Env-v0 --output=DIR
python -m launch.evaluate --checkpoint=DIR --env=metaworld_held:mt5 --output=DIR \
    --policy_python=PYTHON    where the simulator is; the policy is served by another Python
"""

from pathlib import Path

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
_EPISODES = flags.DEFINE_integer("episodes", 200, "Of each robot or task.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the episodes and the policy's noise.", lower_bound=0)
_PARALLEL = flags.DEFINE_integer("parallel", 50, "Environments; rows of a call.", lower_bound=1)
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
    family = families.names_a_family(_ENV.value)
    _refuse_unread(family)
    if _SERVER.value:
        print(f"connecting to {_SERVER.value}, which may still be compiling", flush=True)
    if not family:
        return worlds.run(
            _ENV.value, _CHECKPOINT.value, _SERVER.value, key_file=_KEY_FILE.value,
            conditions=_CONDITIONS.value, episodes=_EPISODES.value, seed=_SEED.value,
            parallel=_PARALLEL.value, workers=_WORKERS.value, num_steps=_STEPS.value,
            record=_RECORD.value, output=Path(_OUTPUT.value))  # fmt: skip
    plan = benchmark.Plan(_ENV.value, tuple(_CONDITIONS.value), _EPISODES.value, _SEED.value,
                          _PARALLEL.value, 0, "", _RECORD.value)  # fmt: skip
    return in_families.run(
        plan, _CHECKPOINT.value, _SERVER.value, key_file=_KEY_FILE.value, num_steps=_STEPS.value,
        workers=_WORKERS.value, output=Path(_OUTPUT.value))  # fmt: skip


def _refuse_unread(family: bool) -> None:
    other, kind = (worlds, "reach or Gymnasium") if family else (in_families, "a family")
    theirs = {f.name for f in flags.FLAGS.flags_by_module_dict()[other.__name__]}
    theirs.discard("execute_steps")  # which both read
    unread = dict.fromkeys(theirs, f"--env of {kind}, found --env={_ENV.value}")
    if _ENV.value == "reach":
        unread |= dict.fromkeys(worlds.OF_GYMNASIUM, "--env of Gymnasium, found --env=reach")
    if _SERVER.value:
        of_checkpoint = ["num_steps", "policy_python", "policy_robot"]
        unread |= dict.fromkeys(of_checkpoint, "--checkpoint, found --server")
    if _CHECKPOINT.value:
        unread["api_key_file"] = "--server, found --checkpoint"
    app.refuse_given(unread)


if __name__ == "__main__":
    main()
