"""Runs servers in processes of their own.

The policy of this server is arithmetic, so a test knows every answer and no model is compiled.

python -m tests.numpy_server '{"robot": "droid", "port": 0}'

Some prompts do something else. "sleep 2" and "work 2" take that many seconds, and the second keeps
the interpreter busy. "fail" raises, and "nan" answers with one.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pi0_jax.embodiments import EMBODIMENTS
from pi0_jax.embodiments.keys import to_message
from pi0_jax.observation import RawObservation
from pi0_jax.serve import server
from pi0_jax.serve.service import Service

ROOT = Path(__file__).parents[1]
HORIZON, DIMS = 10, 8


def observation(seed: int = 0, prompt: str = "pick up the cup") -> RawObservation:
    """Returns an observation of DROID, by the seed."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (8, 8, 3), np.uint8) for camera in ("exterior", "wrist")}
    return {"images": images, "state": rng.integers(-8, 8, 8).astype(np.float32), "prompt": prompt}


def message(number: int = 0, **changes: Any) -> dict[str, Any]:
    """Returns what DROID's clients send for that observation."""
    return to_message(observation(number), EMBODIMENTS["droid"].keys) | changes


def answer(observation: RawObservation, seed: int = 0) -> np.ndarray:
    """Returns float32[10, 8]: the state's sum, the images' sums (mod 97) and the seed, added up.

    Each step of the chunk has one more.
    """
    pixels = sum(int(image.astype(np.int64).sum()) for image in observation["images"].values()) % 97
    return (
        np.sum(observation["state"]) + pixels + seed + np.arange(HORIZON)[:, None] + np.zeros(DIMS)
    ).astype(np.float32)


def act(
    observations: Sequence[RawObservation], seeds: np.ndarray
) -> tuple[np.ndarray, list[list[str]]]:
    for observation in observations:
        what, _, seconds = observation["prompt"].partition(" ")
        if what == "fail":
            raise RuntimeError("secret in /home/robot/secret.txt")
        if what == "sleep":
            time.sleep(float(seconds))
        end = time.monotonic() + (float(seconds) if what == "work" else 0)
        while time.monotonic() < end:
            sum(range(1000))
    chunks = np.stack(
        [
            answer(observation, int(seed))
            for observation, seed in zip(observations, seeds, strict=True)
        ]
    )
    chunks[[observation["prompt"] == "nan" for observation in observations], 3, 2] = np.nan
    return chunks, [["far"] * (observation["prompt"] == "far") for observation in observations]


@contextmanager
def running(
    robot: str = "droid",
    *,
    warm_seconds: float = 0.0,
    batch_sizes: tuple[int, ...] = (1,),
    wait: bool = True,
    **options,
) -> Iterator:
    """Starts a server in a process of its own, and gives its address host:port and the process.

    The options are those of server.Options.
    """
    given = json.dumps(
        {
            "robot": robot,
            "warm_seconds": warm_seconds,
            "batch_sizes": batch_sizes,
            "options": {"port": 0, **options},
        }
    )
    command = [sys.executable, "-m", "tests.numpy_server", given]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield wait_for(process, "warm" if wait else "listening"), process
    finally:
        process.kill()
        process.communicate()


def resident(pid: int) -> int:
    """Anonymous memory of a process, in KiB."""
    return next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )


def wait_for(process: subprocess.Popen, state: str) -> str:
    """Waits until a server is in a state, and returns the address that it then prints."""
    for line in process.stdout:
        if line.startswith(f"{state} on ws://"):
            return line.strip().rpartition("ws://")[2]
    raise AssertionError(f"the server ended: {process.stderr.read()}")


class serving:
    """Runs launch.serve in a process of its own, from when it says `state`.

    The state is "listening" or "warm".
    """

    def __init__(self, checkpoint: Path, *flags: str, state: str = "warm") -> None:
        command = [
            sys.executable,
            "-m",
            "launch.serve",
            f"--checkpoint={checkpoint}",
            "--port=0",
            *flags,
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.pid, self._state = self._process.pid, state

    def __enter__(self) -> str:
        return wait_for(self._process, self._state)

    def __exit__(self, *error) -> None:
        self._process.terminate()
        out, log = self._process.communicate(timeout=60)
        assert self._process.returncode == 0 and out.endswith("stopped\n"), log


def main(given: str) -> None:
    given = json.loads(given)
    options = server.Options(**given["options"])

    def load() -> Service:
        time.sleep(given["warm_seconds"])
        return Service(
            act, EMBODIMENTS[given["robot"]], horizon=HORIZON, batch_sizes=given["batch_sizes"]
        )

    server.run(
        load,
        options,
        lambda state, port: print(f"{state} on ws://{options.host}:{port}", flush=True),
    )


if __name__ == "__main__":
    main(sys.argv[1])
