"""Measures what verifying a checkpoint's digests adds to the time of opening a policy.

python -m benchmarks.opening [--variant=pi0] [--dtype=bfloat16] [--folder=DIR] [--rounds=3]

The same files are opened in fresh processes in turn: as they are, and through links that lack the
manifest, as checkpoints did before there were manifests. The first opening, which brings the files
into the page cache, does not count.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import random_checkpoint
from pi0_jax.checkpoints import DESCRIPTION
from pi0_jax.checkpoints.description import MANIFEST
from pi0_jax.checkpoints.manifest import FILE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", default="pi0", choices=random_checkpoint.MODELS)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/pi0_jax_benchmark"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open", type=Path, help="opens this one, and prints the seconds")
    flags = parser.parse_args()
    if flags.open:
        sys.stdout.write(json.dumps(_open(flags.open, flags.dtype)))
        return
    verified = flags.folder / "opening" / "verified"
    shutil.rmtree(verified.parent, ignore_errors=True)
    random_checkpoint.write(verified, random_checkpoint.named(flags.variant), flags.dtype)
    plain = _without_manifest(verified)
    seconds: dict[Path, list[list[float]]] = {verified: [], plain: []}  # wall, processor
    for round_ in range(1 + flags.rounds):
        for folder, times in seconds.items():
            times.append(_in_a_process(folder, flags.dtype))
            wall, busy = times[-1]
            sys.stderr.write(f"round {round_}, {folder.name}: {wall:.2f} s, {busy:.2f} CPU s\n")
    shutil.rmtree(verified.parent)
    for which, name in enumerate(["seconds", "CPU seconds"]):
        best = {folder.name: min(t[which] for t in times[1:]) for folder, times in seconds.items()}
        result = json.dumps(best | {"ratio": best["verified"] / best["plain"]})
        sys.stdout.write(f"{name} {result}\n")


def _without_manifest(folder: Path) -> Path:
    """Links a workdir's files into another one, which has no manifest."""
    other = folder.with_name("plain")
    shutil.copytree(folder, other, copy_function=os.link)
    (manifest,) = other.rglob(FILE)
    manifest.unlink()
    description = manifest.parent / DESCRIPTION / "metadata"
    record = json.loads(description.read_text())
    description.unlink()  # it is a link to the other's
    description.write_text(json.dumps({k: v for k, v in record.items() if k != MANIFEST}))
    return other


def _in_a_process(folder: Path, dtype: str) -> list[float]:
    command = [
        sys.executable, "-m", "benchmarks.opening", f"--open={folder}", f"--dtype={dtype}"
    ]  # fmt: skip
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _open(folder: Path, dtype: str) -> list[float]:
    import jax

    from pi0_jax.policy import Policy

    jax.devices()
    began, busy = time.monotonic(), time.process_time()
    policy = Policy.open(folder, dtype=dtype)
    del policy
    return [time.monotonic() - began, time.process_time() - busy]


if __name__ == "__main__":
    main()
