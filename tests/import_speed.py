"""Measures launch.import_lerobot: frames per second, and memory of its processes.

python -m tests.import_speed [WORKERS ...]

It writes 3,000 frames of 256x256 pixels (v3.0, twelve episodes, one camera left out) as AV1 and as
H.264, and imports them with each number of workers as JPEG, and with the last one as PNG.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import lerobot_data as made

LENGTHS = (250,) * 12
CODECS = ("libsvtav1", "libx264")
POLL_S = 0.05


def family(parent: int) -> list[int]:
    """Returns the numbers of a process and of all below it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [parent]
    for number in found:
        found += [child for child, above in parents.items() if above == number]
    return found


def memory(number: int) -> tuple[int, int]:
    """Returns the private and the most resident bytes of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return tuple(1024 * int(sizes.get(name, 0)) for name in ("RssAnon", "VmHWM"))


def measure(folder: Path, output: Path, workers: int, images: str) -> str:
    flags = (
        f"--input={folder}",
        f"--output={output}",
        f"--workers={workers}",
        f"--images={images}",
    )
    command = [
        sys.executable,
        "-m",
        "launch.import_lerobot",
        *flags,
        f"--without={made.CAMERAS[1]}",
    ]
    before, start = os.times(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    together, largest = 0, {}
    while process.poll() is None:
        found = {number: memory(number) for number in family(process.pid)}
        together = max(together, sum(private for private, _ in found.values()))
        for number, (_, most) in found.items():
            largest[number] = max(most, largest.get(number, 0))
        time.sleep(POLL_S)
    seconds, after = time.monotonic() - start, os.times()
    assert process.returncode == 0, command
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    size = sum(file.stat().st_size for file in output.rglob("*tfrecord*"))
    main = largest.pop(process.pid)
    below = max(largest.values(), default=0)
    return (
        f"{sum(LENGTHS) / seconds:.0f} frames/s ({seconds:.1f} s, {cpu:.1f} s of a core, {size / 1e6:.0f} MB);"
        f" private memory together {together / 1e6:.0f} MB; resident: command {main / 1e6:.0f} MB, largest below {below / 1e6:.0f} MB"
    )


def main() -> None:
    counts = [int(text) for text in sys.argv[1:]] or [1, 2]
    with tempfile.TemporaryDirectory() as name:
        for codec in CODECS:
            folder = Path(name, codec)
            made.write(folder, "v3.0", "video", LENGTHS, episodes_per_file=4, side=256, codec=codec)
            for workers, images in [*((count, "jpeg") for count in counts), (counts[-1], "png")]:
                output = Path(name, f"{codec}-{workers}-{images}")
                told = measure(folder, output, workers, images)
                print(f"{codec}, {images}, {workers} workers: {told}", flush=True)


if __name__ == "__main__":
    main()
