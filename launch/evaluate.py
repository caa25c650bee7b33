"""Rolls a policy out in closed loop: in the reach world, a Gymnasium environment, or a benchmark.

python -m launch.evaluate --checkpoint=DIR --output=DIR
python -m launch.evaluate --server=HOST:PORT --env=module:Env-v0 --output=DIR
python -m launch.evaluate --checkpoint=DIR --env=metaworld_held:mt5 --output=DIR \
    --policy_python=PYTHON    where the simulator is; the policy is served by another Python
"""

from pathlib import Path

from absl import flags

from . import app, shared

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
    "reach, a Gymnasium ID (sim/gym_rollouts.py), or a family: metaworld:mt5, my_family.py:task.")
_CONDITIONS = flags.DEFINE_list("conditions", ["right"],
    f"Of {', '.join(CONDITIONS)}; in a family of {', '.join(benchmark.CONDITIONS)}.")
_EPISODES = flags.DEFINE_integer("episodes", 200, "Of each robot (or task) and condition.",
    lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the episodes and the policy's noise.", lower_bound=0)
_PARALLEL = flags.DEFINE_integer("parallel", 50, "Environments; rows of a call.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; else one a core.", lower_bound=1)
_STEPS = flags.DEFINE_integer("num_steps", None, "Euler steps; the run's if not given.",
    lower_bound=1)
_RECORD = flags.DEFINE_integer("record", 2, "Episodes of each case to save as GIF; in a family so"
    " many successes and failures of each task.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None,
    "Folder for evaluation.json and rollouts/; what it holds of them is replaced.", required=True)
flags.adopt_module_key_flags(in_families)
flags.adopt_module_key_flags(worlds)
# fmt: on
_CACHE = shared.compilation_cache()


@app.command
def main() -> None:
    output, conditions = Path(_OUTPUT.value), _CONDITIONS.value
    if not families.names_a_family(_ENV.value):
        shared.tell_and_keep(_CACHE)
        return worlds.run(
            _ENV.value, _CHECKPOINT.value, _SERVER.value, key_file=_KEY_FILE.value,
            conditions=conditions, episodes=_EPISODES.value, seed=_SEED.value,
            parallel=_PARALLEL.value, workers=_WORKERS.value, num_steps=_STEPS.value,
            record=_RECORD.value, output=output,
        )  # fmt: skip
    plan = benchmark.Plan(
        _ENV.value, tuple(conditions), _EPISODES.value, _SEED.value, _PARALLEL.value, 0, "",
        _RECORD.value,
    )  # fmt: skip
    return in_families.run(
        plan, _CHECKPOINT.value, _SERVER.value, key_file=_KEY_FILE.value, num_steps=_STEPS.value,
        workers=_WORKERS.value, output=output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
