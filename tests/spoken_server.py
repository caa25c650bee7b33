"""Serves a policy that does what its prompt says, by the record of its robot.

    python -m tests.spoken_server libero

"dx +0.5" gives the action dx that number, and "gripper open" and "gripper closed" what the record
says. All other relative actions are 0, and a gripper that is not named is open.
"""

import sys
from collections.abc import Sequence

import numpy as np

from pi0_jax.embodiments import EMBODIMENTS, Embodiment
from pi0_jax.observation import RawObservation
from pi0_jax.serve import server
from pi0_jax.serve.service import Act, Service

HORIZON = 10


def spoken(record: Embodiment) -> Act:
    def act(
        observations: Sequence[RawObservation], seeds: np.ndarray
    ) -> tuple[np.ndarray, list[list[str]]]:
        chunks = np.stack([np.tile(action(one["prompt"]), (HORIZON, 1)) for one in observations])
        return chunks.astype(np.float32), [[] for _ in observations]

    def action(prompt: str) -> list[float]:
        name, _, said = prompt.partition(" ")
        numbers = []
        for dim in record.actions:
            ends = dict(zip(("open", "closed"), dim.ends or (0.0, 0.0), strict=True))
            chosen = said if dim.name == name else "open"
            numbers.append(ends[chosen] if chosen in ends else float(chosen))
        return numbers

    return act


def main(robot: str) -> None:
    record, options = EMBODIMENTS[robot], server.Options(port=0)
    server.run(
        lambda: Service(spoken(record), record, horizon=HORIZON),
        options,
        lambda state, port: print(f"{state} on ws://{options.host}:{port}", flush=True),
    )


if __name__ == "__main__":
    main(sys.argv[1])
