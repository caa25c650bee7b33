"""Rolls a policy out in a family of tasks, whose simulator this Python has; see launch.evaluate."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from absl import flags

from pi0_jax.errors import InputError
from pi0_jax.serve.client import Client
from pi0_jax.serve.process import serving
from pi0_jax.serve.wire import read_api_key
from pi0_jax.sim import benchmark
from pi0_jax.sim.benchmark import controls, families

from .worlds import EXECUTE_STEPS

# fmt: off
_PYTHON = flags.DEFINE_string("policy_python", sys.executable, "The Python that serves --checkpoint.")
_tell = partial(print, "server:", flush=True)
_ROBOT = flags.DEFINE_string("policy_robot", None, "Whose statistics, if --checkpoint has several.")
_NEIGHBOURS = flags.DEFINE_string("neighbours", None, "A file of launch.neighbours, for nearest_*.")
# fmt: on


def run(
    plan: benchmark.Plan, checkpoint: str | None, server: str | None, *,
    key_file: str | None, num_steps: int | None, workers: int | None, output: Path,
) -> None:  # fmt: skip
    """Measures and prints the table. The plan's source and execute_steps are filled in here."""
    if bool(checkpoint) == bool(server):
        raise InputError("expected either --checkpoint or --server")
    if server and "untrained" in plan.conditions:
        raise InputError("condition untrained: expected a checkpoint, found a server")
    family, tasks = families.find(plan.env)
    prompts = [family.tasks[task] for task in tasks]
    near = any(condition.startswith("nearest") for condition in plan.conditions)
    moments = controls.open_neighbours(_NEIGHBOURS.value, family.record, prompts) if near else None
    optional, (height, width) = {"num_steps": num_steps, "robot": _ROBOT.value}, family.image_size
    size = plan.batch * height * width * 3 * len(family.record.cameras) // 2**20 + 2
    serve = [f"--checkpoint={checkpoint}", f"--image_sizes={height}x{width}",
             f"--batch_sizes={plan.batch}", f"--max_message_mib={max(size, 16)}",
             *(f"--{flag}={value}" for flag, value in optional.items() if value)]  # fmt: skip
    with contextlib.ExitStack() as open_now:
        clients: dict[str, Client] = {}

        def client(weights: str) -> Client:
            if weights not in clients:
                open_now.close()
                clients.clear()
                given = [f"--untrained={plan.seed}"] if weights == "untrained" else []
                here = _PYTHON.value, f"{__package__}.serve", [*serve, *given], _tell
                opening = serving(*here) if not server else Client(
                    server, api_key=read_api_key(key_file), timeout=300.0)  # fmt: skip
                clients[weights] = open_now.enter_context(opening)
                try:
                    metadata = clients[weights].metadata
                except TimeoutError as error:
                    raise InputError(str(error)) from error
                families.check_record(family, metadata.get("embodiment"))
            return clients[weights]

        @contextlib.contextmanager
        def policy(condition: str) -> Iterator[benchmark.Candidate]:
            if moments and condition.startswith("nearest"):
                act = moments.act(pixels=condition == "nearest_pixels")
                yield benchmark.Candidate(act, {"demonstrations": moments.digest()})
            else:
                served = client("untrained" if condition == "untrained" else "trained")
                act = controls.black(served.act) if condition == "black" else served.act
                yield benchmark.Candidate(act, {"versions": served.metadata.get("versions")})

        plan = dataclasses.replace(plan, source=checkpoint or str(server), execute_steps=(
            EXECUTE_STEPS.value or family.record.execute_steps))  # fmt: skip
        found = benchmark.measure(plan, policy, output, workers=workers)
    print(benchmark.table(found["rows"], found.get("published")))
    print(f"{family.name}: {family.protocol}\nwritten to {output}")
