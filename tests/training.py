"""Runs the real training command on tiny data, in processes of their own: started, killed, read."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pi0_jax import checkpoints
from pi0_jax.train.metrics import read_metrics
from tests.tiny_data import reach_episodes, write_reach

ROOT = Path(__file__).parents[1]
TINY = dict(
    seed=3, datasets=("reach_arm3",), weights=(1.0,), statistics_only=(), variant="pico", action_dim=6, horizon=5, max_tokens=12,
    draws=2, batch_size=8, steps=12, warmup_steps=2, log_every=1, validate_every=6, validation_frames=3, save_every=4,
)  # fmt: skip


# Fixtures: a test file takes them by an assignment, as in `data_dir = training.data_dir`.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Writes the dataset reach_arm3: eight episodes of six steps."""
    path = tmp_path_factory.mktemp("data")
    write_reach(path, lengths=(6,) * 8)
    return path


UNCHECKED = """
from configs.reach import get_config as reach

JOINTS = [dict(name=f"joint_{i}", unit="1") for i in range(3)]
STATE, ACTION = "steps/observation/state", "steps/action"

def get_config():
    c = reach()
    c.own_datasets.unchecked = dict(
        tfds_name="reach_arm3",
        versions=("1.0.0",),
        embodiment=dict(
            robot="an arm", cameras=dict(base_0_rgb="base", left_wrist_0_rgb="wrist"), state=JOINTS,
            actions=[dict(joint, kind="absolute", delta=True, low=-3.4e38, high=3.4e38) for joint in JOINTS],
            control_hz=10.0, execute_steps=5,
        ),
        cameras={name: dict(path=f"steps/observation/{name}") for name in ("base", "wrist")},
        fields=[dict(path=path, shape=(3,), dtype="float32") for path in (STATE, ACTION)],
        language=dict(paths=("steps/language_instruction",)),
    )
    return c
"""


def overflowing_data(data_dir: Path) -> dict[str, Any]:
    """Writes eight episodes of six steps, and returns how to train on them.

    The first action of the third episode makes its loss not finite. The row says that there may be
    such actions: otherwise the index would refuse them.
    """
    episodes = reach_episodes((6,) * 8)
    episodes[2]["steps"][0]["action"] = np.float32([3e38, 0, 0])
    write_reach(data_dir, episodes=episodes)
    config = data_dir / "unchecked.py"
    config.write_text(UNCHECKED)
    return dict(file=config, normalization="quantile", datasets=("unchecked",))


def command(
    data_dir: Path,
    workdir: Path,
    *flags: str,
    file: str | Path = "configs/reach.py",
    **changes: Any,
) -> list[str]:
    fields = {**TINY, "data_dir": data_dir, **changes}
    config = [
        f"--config.{name}={repr(value) if isinstance(value, tuple) else value}"
        for name, value in fields.items()
    ]
    return [
        sys.executable,
        "-m",
        "launch.train",
        f"--config={file}",
        f"--workdir={workdir}",
        *config,
        *flags,
    ]


def environment(devices: int, cached: bool = True) -> dict[str, str]:
    """Returns the environment of a command with `devices` virtual devices and quick compilation.

    Unless it is `cached`, the command compiles anew what another test has compiled.
    """
    flags = (
        f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    enabled = {} if cached else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1", **enabled}


# Where a shell has started the tests in the background, or nohup has, some signals are ignored, and so
# they would be by a run.
HEARING = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Process:
    """Is one process of a run; its output is in workdir's sibling <name>.log."""

    def __init__(self, run: list[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HEARING, *run],
                cwd=ROOT,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait(self, timeout: float = 300) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it would take a core for as long as the tests run
            raise

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not what():
            assert self._process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.001)

    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def text(self) -> str:
        return self.log.read_text().replace("\r", "\n")

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]


def start(
    data_dir: Path,
    workdir: Path,
    *flags: str,
    cached: bool = True,
    devices: int = 1,
    log: Path | None = None,
    **changes: Any,
) -> Process:
    run, env = command(data_dir, workdir, *flags, **changes), environment(devices, cached)
    return Process(run, env, log or workdir.with_suffix(".log"))


def start_two(
    data_dirs: list[Path],
    workdir: Path,
    *flags: str,
    devices: int,
    log: Path | None = None,
    **changes: Any,
) -> list[Process]:
    """Runs two processes on loopback.

    Each has `devices` of its own and, if need be, its own copy of the data. A machine that does
    much else may keep a process from speaking for long. So without another flag they are patient
    with each other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joining = (f"--coordinator_address={address}", "--num_processes=2", "--silence_seconds=240")
    return [
        Process(
            command(data_dir, workdir, *joining, f"--process_id={i}", *flags, **changes),
            environment(devices),
            (log or workdir).with_suffix(f".{i}.log"),
        )
        for i, data_dir in enumerate(data_dirs)
    ]


def finish(*processes: Process) -> None:
    for process in processes:
        assert process.wait() == 0, process.text


def losses(workdir: Path) -> dict[int, float]:
    lines = [line for line in read_metrics(workdir) if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss"] for line in lines}


def validations(workdir: Path) -> list[dict[str, float]]:
    """Returns the lines of validations, without their times."""
    lines = [line for line in read_metrics(workdir) if "validation/loss" in line]
    return [{name: line[name] for name in line if name != "time"} for line in lines]


def saved_steps(workdir: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (workdir / checkpoints.FOLDER).iterdir() if path.name.isdigit()
    )


def arrays(workdir: Path, step: int, item: str) -> dict[str, np.ndarray]:
    """Returns the "params" or "ema" of a checkpoint, by path, whatever devices wrote it."""
    folder = workdir / checkpoints.FOLDER / str(step)
    tree = checkpoints.read_params(folder, item, abstract(folder, item))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def abstract(folder: Path, item: str) -> Any:
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder / item).item_metadata
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), dict(metadata)
    )


def assert_same(workdir: Path, other: Path, step: int) -> None:
    """Checks that losses, validations, parameters and EMA are the same, to the bit."""
    assert losses(workdir) == losses(other)
    assert validations(workdir) == validations(other)
    for item in ("params", "ema"):
        ours, theirs = arrays(workdir, step, item), arrays(other, step, item)
        assert ours.keys() == theirs.keys()
        assert [path for path in ours if not np.array_equal(ours[path], theirs[path])] == []
