"""openpi-client from PyPI, unmodified, talks to launch.serve over a real socket.

Its wheel wants NumPy below 2, so it cannot live where we do, and has an environment of its own.
OPENPI_CLIENT_PYTHON names the Python of that environment, or it is made once in
.venv/openpi_client.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from pi0_jax.policy import Policy
from tests import policies
from tests.numpy_server import ROOT, serving

# it imports the second without saying so
REQUIREMENTS = (
    "openpi-client==0.1.2",
    "typing_extensions",
)
DISTINCT, INFERENCES = 10, 100

CLIENT = """
import sys, numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
address, folder, inferences = sys.argv[1:]
host, port = address.split(":")
client = WebsocketClientPolicy(host=host, port=int(port), api_key="s3cret")
metadata = client.get_server_metadata()
assert metadata["robot"] and metadata["execute_steps"] > 0, metadata
given = np.load(folder + "/given.npz")
distinct = 1 + max(int(name.split(":")[0]) for name in given.files)
actions = []
for i in range(int(inferences)):
    observation = {"prompt": "pick up the red block"}
    for name in given.files:
        number, key = name.split(":")
        if int(number) == i % distinct:
            if key.startswith("images/"):  # the ALOHA client nests its cameras
                observation.setdefault("images", {})[key[len("images/"):]] = given[name]
            else:
                observation[key] = given[name]
    reply = client.infer(observation)
    assert reply["server_timing"]["infer_ms"] > 0 and reply["policy_timing"]["infer_ms"] > 0
    actions.append(reply["actions"])
try:
    client.infer({"prompt": "pick up the red block"})
except RuntimeError as error:
    assert "is missing; expected" in str(error), error
else:
    raise AssertionError("a bad observation was answered")
assert np.array_equal(client.infer(observation)["actions"], actions[-1])
np.save(folder + "/actions.npy", np.stack(actions))
"""


@pytest.fixture(scope="module")
def client_python() -> str:
    if "OPENPI_CLIENT_PYTHON" in os.environ:
        return os.environ["OPENPI_CLIENT_PYTHON"]
    folder = ROOT / ".venv" / "openpi_client"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        # from source it takes an hour
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary=numpy",
            *REQUIREMENTS,
        ]
        for command in ([sys.executable, "-m", "venv", folder], install):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(
                    f"cannot install {REQUIREMENTS[0]} for Python {sys.version_info.major}.{sys.version_info.minor}: {done.stderr[-200:]}"
                )
        (folder / "installed").touch()
    return str(python)


def droid(seen):
    return {
        "observation/exterior_image_1_left": seen["images"]["exterior"],
        "observation/wrist_image_left": seen["images"]["wrist"],
        "observation/joint_position": seen["state"][:7],
        "observation/gripper_position": seen["state"][7:],
    }


def libero(seen):
    return {
        "observation/image": seen["images"]["base"],
        "observation/wrist_image": seen["images"]["wrist"],
        "observation/state": seen["state"],
    }


def aloha(seen):
    images = {
        f"images/{camera}": np.ascontiguousarray(image.transpose(2, 0, 1))
        for camera, image in seen["images"].items()
    }
    return {"state": seen["state"], "images/cam_low": np.zeros((3, 224, 224), np.uint8), **images}


@pytest.mark.parametrize("layout", [droid, libero, aloha])
def test_a_hundred_inferences_are_those_of_the_policy_in_this_process(
    layout, client_python, tmp_path
):
    robot = layout.__name__
    checkpoint = policies.write_checkpoint(
        tmp_path / "run", [robot], max_tokens=16, sampling_steps=3
    )
    (tmp_path / "key").write_text("s3cret\n")
    observations = [policies.observation(robot, i, size=(224, 224)) for i in range(DISTINCT)]
    np.savez(
        tmp_path / "given.npz",
        **{
            f"{i}:{key}": value
            for i, seen in enumerate(observations)
            for key, value in layout(seen).items()
        },
    )

    flags = [f"--api_key_file={tmp_path / 'key'}", f"--compilation_cache={tmp_path / 'cache'}"]
    # The client comes while the policy loads, and waits.
    with serving(checkpoint, *flags, state="listening") as address:
        command = [client_python, "-c", CLIENT, address, str(tmp_path), str(INFERENCES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    policy = Policy.open(checkpoint)
    expected = np.stack([policy(seen)["actions"] for seen in observations])
    assert expected.shape == (DISTINCT, 10, {"droid": 8, "libero": 7, "aloha": 14}[robot])
    received = np.load(tmp_path / "actions.npy")
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, np.concatenate([expected] * (INFERENCES // DISTINCT)))
