"""An index of 100 million frames opens at once and without memory: its columns are not read."""

import json

import numpy as np

from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index import build_or_open
from pi0_jax.data.index.version import sealed
from tests.own_process import python
from tests.tiny_data import write_reach

FRAMES, LENGTH = 100_000_000, 100
EPISODES = FRAMES // LENGTH

OPEN = rf"""
import re, sys, time
from pathlib import Path
import numpy as np
from pi0_jax.data.datasets import ROWS
from pi0_jax.data.index.version import sealed
from pi0_jax.data.index import Index

def anonymous_bytes():
    return int(re.search(r"RssAnon:\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before, start = anonymous_bytes(), time.monotonic()
index = Index(ROWS["reach_arm3"], Path(sys.argv[1]), Path(sys.argv[2]))
seconds = time.monotonic() - start
frames = np.random.default_rng(0).integers(0, {FRAMES}, 1000)
assert (index.steps, len(index.frames("train")), len(index.prompts)) == ({FRAMES}, {FRAMES}, {EPISODES})
np.testing.assert_array_equal(index.episode_of(frames), frames // {LENGTH})
np.testing.assert_array_equal(index.step_of(frames), frames % {LENGTH})
assert index.chunks(frames, 50)[0].shape == (1000, 50, 3)
assert index.prompt(int(frames[0])) == "p"
print(seconds, anonymous_bytes() - before)
"""


def stretch(file, rows):
    """Makes the .npy `file` hold `rows` rows of zeros that take no room on the disk."""
    column = np.load(file)
    with open(file, "wb") as target:
        header = {
            "descr": column.dtype.str,
            "fortran_order": False,
            "shape": (rows, *column.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(target, header)
        target.truncate(target.tell() + rows * column[:1].nbytes)


def fill(file, values):
    np.save(file, values.astype(np.load(file, mmap_mode="r").dtype))


def test_an_index_of_100_million_frames_opens_at_once(tmp_path):
    directory = write_reach(tmp_path / "data")
    path = build_or_open(
        ROWS["reach_arm3"], tmp_path / "data", tmp_path / "indices", progress=False
    ).path
    for file in path.glob("*.npy"):
        stretch(file, EPISODES if file.stem.startswith(("episode_", "prompt_")) else FRAMES)
    fill(path / "episode_start.npy", np.arange(EPISODES) * LENGTH)
    fill(path / "episode_stop.npy", np.full(EPISODES, LENGTH))
    fill(path / "prompt_end.npy", np.arange(EPISODES) + 1)
    fill(path / "prompt_text.npy", np.full(EPISODES, ord("p")))
    record = json.loads((path / "index.json").read_text())
    changed = {**record, "steps": FRAMES, "episodes": EPISODES, "prompts": EPISODES}
    del changed["sha256"]
    (path / "index.json").write_text(json.dumps(sealed(changed)))

    seconds, grown = map(float, python("-c", OPEN, directory, path).stdout.split())
    assert seconds < 2 and grown < 100e6
