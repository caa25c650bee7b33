"""Tests see eight virtual CPU devices, so meshes are real, and compile quickly rather than well.

Shapes and dtypes in the annotations of the model, the flow and the step are checked wherever a test
calls or traces them.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Before anything imports these modules.
install_import_hook(
    ["pi0_jax.flow", "pi0_jax.models", "pi0_jax.train.step"], typechecker="beartype.beartype"
)

# What one test, or a command that it starts, has compiled is there for all others.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="pi0_jax-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# They render, and run in processes of their own (test_rendering.py), unless one names that folder.
collect_ignore = [] if any("rendering" in argument for argument in sys.argv) else ["rendering"]


# The files that take longest, which begin first, so that the processes end together.
LONGEST = (
    "test_aot", "test_resume", "test_readme", "test_distributed", "test_recipes", "test_train", "test_initial",
    "test_policy", "test_wheel", "test_convert", "test_pi0", "test_step",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else 99)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory) -> Iterator[None]:
    """Keeps what commands put into the user's cache folder from outliving the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
