"""Launchers for clusters run the right commands, and arguments arrive as they were given.

Stand-ins take gcloud's and srun's place.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TPU, SLURM = ROOT / "launch/tpu_pod.sh", ROOT / "launch/slurm.sbatch"
SHELLCHECK = shutil.which(
    "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
AWKWARD = ["two words", "it's", 'a "quoted" one', "$HOME `id` \\", "('a',)", "*", ""]

# Runs on this machine what is meant for the workers, in a home of their own; notes its arguments.
GCLOUD = """#!/bin/bash
printf '%s\\n' "$*" >>"$HOME/gcloud.log"
for argument in "$@"; do
    case $argument in --command=*) cd "$HOME" && bash -c "${argument#--command=}" || exit ;; esac
done
"""


def launch(
    script: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Runs a launcher without what a job or a user's shell may have set."""
    env = {"PATH": os.environ["PATH"], "HOME": "/home/me"} | (environment or {})
    return subprocess.run(
        ["bash", script, *arguments], env=env, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def worker(tmp_path) -> dict[str, str]:
    """Returns the environment variables of someone whose gcloud reaches one installed worker.

    The worker's home is their own.
    """
    tool = tmp_path / "bin/gcloud"
    tool.parent.mkdir()
    tool.write_text(GCLOUD)
    tool.chmod(0o755)
    (tmp_path / "pi0_jax").mkdir()
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (extra dev)")
@pytest.mark.parametrize(
    "script", ["launch/tpu_pod.sh", "launch/slurm.sbatch", "launch/install_gl.sh", ".ci/run"]
)
def test_shellcheck_finds_nothing(script):
    process = subprocess.run([SHELLCHECK, ROOT / script], capture_output=True, text=True)
    assert (process.stdout, process.returncode) == ("", 0)


def test_a_slice_is_created_and_installed():
    where = ["--name=pi0", "--zone=us-west4-a"]
    process = launch(
        TPU,
        "up",
        *where,
        "--type=v5litepod-16",
        "--version=v2-alpha-tpuv5-lite",
        "--spot",
        "--dry_run",
    )
    # a folder of its own, which is gone again
    (folder,) = set(re.findall(r"\S*/tmp\.\w+", process.stdout.replace("--output=", "")))
    assert not os.path.exists(folder)
    lines = process.stdout.replace(folder, "/tmp").splitlines()
    assert process.returncode == 0 and process.stderr == ""
    assert lines[:4] == [
        "gcloud compute tpus tpu-vm describe pi0 --format=value\\(state\\) --zone=us-west4-a",
        "gcloud compute tpus tpu-vm create pi0 --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a",
        "git archive --format=tar.gz --output=/tmp/pi0_jax.tar.gz HEAD",
        "gcloud compute tpus tpu-vm scp /tmp/pi0_jax.tar.gz pi0:pi0_jax.tar.gz --worker=all --zone=us-west4-a",
    ]
    (install,) = lines[4:]
    assert install.startswith(
        "gcloud compute tpus tpu-vm ssh pi0 --worker=all $'--command=set -e\\n"
    )
    assert (
        "python3 -m uv pip install --quiet --python pi0_jax_env --editable \\'pi0_jax[tpu,data,remote]\\'"
        in install
    )


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (
            ["logs", "--worker=3"],
            "gcloud compute tpus tpu-vm ssh pi0 --worker=3 --command=tail\\ -n\\ 100\\ -F\\ run.log --zone=z",
        ),
        (["delete"], "gcloud compute tpus tpu-vm delete pi0 --quiet --zone=z"),
    ],
)
def test_logs_and_the_end_of_a_slice(action, expected):
    assert launch(TPU, *action, "--name=pi0", "--zone=z", "--dry_run").stdout == expected + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: expected up, run, logs, stop or delete, found ''"),
        (["run", "--name=pi0", "--", "true"], "error: --name and --zone are needed"),
        (
            ["run", "--name=pi0", "--zone=z"],
            "error: expected the command that the workers run after --",
        ),
        (["up", "--name=pi0", "--zone=z"], "error: --type and --version are needed"),
        (
            ["run", "--name=pi0", "--zone=z", "python"],
            "error: unknown argument 'python'; the command that the workers run comes after --",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, message):
    process = launch(TPU, *arguments)
    assert (process.stderr, process.returncode, process.stdout) == (message + "\n", 2, "")


def test_a_worker_gets_the_arguments_as_they_were_given(worker, tmp_path):
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", *AWKWARD]
    process = launch(TPU, "run", "--name=pi0", "--zone=z", "--", *command, environment=worker)
    assert (process.returncode, process.stderr) == (0, "")
    wait_for(tmp_path / "run.log", f"{AWKWARD}\n")


def test_a_run_is_not_started_twice_and_stops_by_sigterm(worker, tmp_path):
    where = ["--name=pi0", "--zone=z"]
    program = "\n".join(
        [
            "import signal",
            "print('ready', flush=True)",
            "signal.sigwait([signal.SIGTERM])",
            "print('saved')",
        ]
    )
    program = (
        f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n{program}"
    )
    assert (
        launch(
            TPU, "run", *where, "--", sys.executable, "-c", program, environment=worker
        ).returncode
        == 0
    )
    wait_for(tmp_path / "run.log", "ready\n")
    again = launch(TPU, "run", *where, "--", "true", environment=worker)
    assert (again.returncode, again.stderr) == (1, "error: a command runs here; stop it first\n")
    assert launch(TPU, "stop", *where, environment=worker).stdout == ""
    assert (tmp_path / "run.log").read_text() == "ready\nsaved\n"  # stop has waited for it
    assert launch(TPU, "stop", *where, environment=worker).stdout == "nothing runs\n"
    assert launch(TPU, "run", *where, "--", "echo", "again", environment=worker).returncode == 0
    wait_for(tmp_path / "run.log", "ready\nsaved\nagain\n")


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not log.exists() or log.read_text() != text:
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.02)


def test_a_slurm_job_starts_one_process_for_each_gpu():
    environment = {"PYTHON": "/shared/my env/bin/python", "SLURM_CPUS_PER_TASK": "12"}
    process = launch(
        SLURM,
        "--dry_run",
        "--config=configs/reach.py",
        "--config.datasets=('a',)",
        environment=environment,
    )
    assert process.stdout == (
        "srun --kill-on-bad-exit=1 --gpu-bind=none --cpus-per-task=12 /shared/my\\ env/bin/python -m pi0_jax.launch.train"
        " --config=configs/reach.py --config.datasets=\\(\\'a\\'\\,\\)\n"
    )


def test_slurm_tasks_get_the_arguments_as_they_were_given(tmp_path):
    tool = tmp_path / "srun"
    tool.write_text(
        f'#!{sys.executable}\nimport sys\nprint(sys.argv[sys.argv.index("pi0_jax.launch.train") + 1 :])\n'
    )
    tool.chmod(0o755)
    process = launch(SLURM, *AWKWARD, environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert process.stdout == f"{AWKWARD}\n"
