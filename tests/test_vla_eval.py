"""vla-eval's own runner asks a policy of ours, by the model server for its protocol.

PI0_JAX_VLA_EVAL_PYTHON names a Python that has vla-eval 0.8.0.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VLA = os.environ.get("PI0_JAX_VLA_EVAL_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not VLA, reason="PI0_JAX_VLA_EVAL_PYTHON names no Python: pip install vla-eval==0.8.0"
)
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


@contextlib.contextmanager
def started(python: str, *arguments: str, ready: str) -> Iterator[str]:
    """Runs a server until the block ends, and gives what stands behind `ready` in its output."""
    how = dict(cwd=ROOT, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen([python, *arguments], **how) as server:
        try:
            said = []
            for line in server.stdout:
                said.append(line)
                if ready in line:
                    yield line.partition(ready)[2].strip()
                    return
            raise AssertionError("".join(said))
        finally:
            server.kill()


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(policy: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs vla-eval's command against a model server of ours that asks the policy's server."""
    config = {
        "output_dir": str(folder),
        "benchmarks": [
            {"benchmark": "tests.vla_eval_moves:Moves", "episodes_per_task": 2, "subname": "moves"}
        ],
    }
    (folder / "moves.yaml").write_text(json.dumps(config))
    port = free_port()
    serve = [
        "-m", "pi0_jax.serve.vla_eval", f"--args.server={policy}", f"--address=127.0.0.1:{port}",
        *arguments,
    ]  # fmt: skip
    with started(VLA, *serve, ready="HTTP config endpoint"):
        command = [
            VLA, "-m", "vla_eval.cli.main", "run", f"--config={folder / 'moves.yaml'}", "--no-docker",
            f"--server-url=ws://127.0.0.1:{port}", "--eval-id=one",
        ]  # fmt: skip
        return subprocess.run(
            command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=300
        )


def test_its_runner_gets_the_actions_of_the_record(tmp_path):
    """Three things that were said are done, and what was told to stand still does not move."""
    with started(
        sys.executable, "-m", "tests.spoken_server", "libero", ready="warm on ws://"
    ) as policy:
        done = run(policy, tmp_path)
    said = done.stdout + done.stderr
    print(said)
    assert done.returncode == 0, said
    assert "Spec validation passed" in said and "Spec mismatch" not in said
    found = json.loads((tmp_path / "Moves_moves_aggregate.json").read_text())
    assert {task["task"]: task["mean_success"] for task in found["tasks"]} == {
        "dx +0.5": 1.0, "dyaw -0.5": 1.0, "gripper closed": 1.0, "dy +0": 0.0
    }  # fmt: skip


def test_cameras_that_the_record_has_not_are_named():
    with started(
        sys.executable, "-m", "tests.spoken_server", "libero", ready="warm on ws://"
    ) as policy:
        command = [
            VLA, "-m", "pi0_jax.serve.vla_eval", f"--args.server={policy}",
            "--args.cameras={front: agentview}", "--address=127.0.0.1:0",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert "cameras: expected ['base', 'wrist'], found ['front']" in said
