"""What an import gives is what LeRobot itself reads from its own datasets.

LeRobot cannot live where we do. LEROBOT_PYTHON names the Python of an environment with a lerobot that
writes v3.0 (0.4 or newer; tried with 0.6.1), LEROBOT_V21_PYTHON of one that writes v2.1 (0.3; tried
with 0.3.3 and NumPy 2.2). Where neither is given these tests are skipped.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pi0_jax.data.lerobot.importer import import_lerobot
from pi0_jax.data.lerobot.steps import Encoding
from pi0_jax.data.write import encode_jpeg
from tests import lerobot_data as made

PYTHONS = {"v2.1": "LEROBOT_V21_PYTHON", "v3.0": "LEROBOT_PYTHON"}
WRITE_AND_READ = """
import inspect, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
folder, kind, out = sys.argv[1:]
rng = np.random.default_rng(0)
names = [f"joint_{i}.pos" for i in range(6)] + ["gripper.pos"]
vector = {"dtype": "float32", "shape": (7,), "names": names}
camera = {"dtype": kind, "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
cameras = ["observation.images.top", "observation.images.wrist"]
features = {"observation.state": vector, "action": vector,
            "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
            "observation.force": {"dtype": "float32", "shape": (2, 3), "names": None},
            **dict.fromkeys(cameras, camera)}
how = dict(repo_id="me/mine", root=folder)
dataset = LeRobotDataset.create(fps=30, features=features, robot_type="seven", use_videos=kind == "video", **how)
y, x = np.mgrid[:48, :64]
for episode in range(4):
    for i in range(11 + 5 * episode):
        image = np.stack([4 * x + 5 * i, 5 * y + 40 * episode, x + y + i], -1).astype(np.uint8)
        frame = {"observation.state": rng.normal(size=7).astype(np.float32),
                 "action": rng.normal(size=7).astype(np.float32),
                 "next.reward": np.array([i / 7], np.float32),
                 "observation.force": rng.normal(size=(2, 3)).astype(np.float32),
                 cameras[0]: image, cameras[1]: 255 - image}
        task = f"task {episode % 3}"
        if "task" in inspect.signature(dataset.add_frame).parameters:
            dataset.add_frame(frame, task=task)
        else:
            dataset.add_frame({**frame, "task": task})
    dataset.save_episode()
if hasattr(dataset, "finalize"):
    dataset.finalize()
found = {}
read = LeRobotDataset(video_backend="pyav", **how)
for i in range(len(read)):
    for name, value in read[i].items():
        found.setdefault(name, []).append(np.asarray(value))
np.savez(out, **{name: np.stack(values) for name, values in found.items()})
"""


@pytest.fixture(
    params=[(version, kind) for version in PYTHONS for kind in ("video", "image")], ids=" ".join
)
def theirs(request, tmp_path):
    """Returns a dataset that LeRobot wrote, and what it reads from it, by feature."""
    version, kind = request.param
    python = os.environ.get(PYTHONS[version])
    if not python:
        pytest.skip(f"{PYTHONS[version]} names no environment with LeRobot")
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = given | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [python, "-c", WRITE_AND_READ, str(tmp_path / "in"), kind, str(tmp_path / "out.npz")]
    done = subprocess.run(command, env=offline, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "out.npz") as read:
        return tmp_path / "in", dict(read)


def uint8(images: np.ndarray) -> np.ndarray:
    """Returns uint8[N, H, W, 3] of LeRobot's float32[N, 3, H, W] in [0, 1]."""
    return np.rint(images * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)


def imported(folder: Path) -> dict[str, np.ndarray]:
    """Returns what an import of `folder` holds, all episodes behind each other."""
    dataset = import_lerobot(folder, folder.parent / "png", encoding=Encoding("png")).folder
    episodes = list(made.steps_of(dataset))
    names = [*made.CAMERAS, *made.VECTORS, "next.reward", "observation.force", "timestamp"]
    names += ["frame_index", "index", "task_index", "language_instruction"]
    return {name: np.concatenate([made.at(it, name) for it in episodes]) for name in names}


def test_every_frame_and_number_is_what_lerobot_reads(theirs):
    folder, read = theirs
    found = imported(folder)
    for name in made.CAMERAS:
        np.testing.assert_array_equal(found[name], uint8(read[name]), err_msg=name)
    for name in set(found) - {*made.CAMERAS, "language_instruction"}:
        values = read[name].reshape(found[name].shape)
        assert values.dtype == found[name].dtype and values.tobytes() == found[name].tobytes(), name
    assert [text.decode() for text in found["language_instruction"]] == list(read["task"])


def test_jpeg_is_of_lerobots_frames(theirs):
    """What JPEG loses is all that is lost: the files are those that its frames give."""
    folder, read = theirs
    dataset = import_lerobot(folder, folder.parent / "jpeg", encoding=Encoding()).folder
    for name in made.CAMERAS:
        assert made.files_of(dataset, name) == [encode_jpeg(it) for it in uint8(read[name])]
