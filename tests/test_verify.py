"""The known-answer vectors are reproduced, and a broken vectors file is refused."""

import numpy as np
import pytest

from pi0_jax import verify
from pi0_jax.errors import InputError
from tests.own_process import python


@pytest.fixture(scope="module")
def arrays():
    with np.load(verify.SHIPPED_VECTORS) as archive:
        return dict(archive)


def write(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("path", "leaves"), [(verify.SHIPPED_VECTORS, 50), (verify.SHIPPED_PI05_VECTORS, 51)]
)
def test_every_shipped_output_is_reproduced_in_float32(path, leaves):
    """Our numbers are within 1e-5 of the published implementation's, for π0 and π0.5.

    Gradient norms are within 1e-4 of themselves.
    """
    comparisons = list(verify.compare(verify.load_vectors(path), "float32"))
    assert [c for c in comparisons if not c.ok] == []
    names = {c.name for c in comparisons}
    assert {
        "image_tokens/base_0_rgb",
        "prefix_embedding",
        "velocity",
        "loss",
        "actions_1",
        "actions_4",
        "actions_10",
    } <= names
    assert sum(name.startswith("grad_norm/") for name in names) == leaves


def test_a_wrong_parameter_fails_and_says_so(arrays, tmp_path):
    arrays = arrays | {"params/state_proj/bias": arrays["params/state_proj/bias"] + 0.01}
    vectors = write(tmp_path / "vectors.npz", arrays)
    said = python("-m", "launch.verify", f"--vectors={vectors}", status=1).stdout
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert lines["velocity"].endswith("FAIL") and lines["prefix_embedding"].endswith("ok")


@pytest.mark.parametrize(
    "key",
    ["spec.json", "in/state", "in/image/base_0_rgb", "params/state_proj/bias", "out/velocity"],
)
def test_a_missing_key_is_named(arrays, tmp_path, key):
    path = write(tmp_path / "vectors.npz", {k: v for k, v in arrays.items() if k != key})
    with pytest.raises(InputError, match=f"vectors.npz: key '{key}' is missing"):
        verify.load_vectors(path)


def test_a_parameter_of_another_shape_is_named(arrays, tmp_path):
    path = write(
        tmp_path / "vectors.npz", arrays | {"params/state_proj/bias": np.zeros(3, np.float32)}
    )
    with pytest.raises(InputError, match=r"params/state_proj/bias has shape \(3,\)"):
        verify.load_vectors(path)


def test_not_an_npz(tmp_path):
    (tmp_path / "vectors.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="not a readable vectors file"):
        verify.load_vectors(tmp_path / "vectors.npz")
