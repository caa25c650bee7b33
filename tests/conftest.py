"""Tests see eight virtual CPU devices, so that meshes are real, and compile quickly rather than well."""

import os
import sys

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# They render, and run in processes of their own (test_rendering.py), unless one names that folder.
collect_ignore = [] if any("rendering" in argument for argument in sys.argv) else ["rendering"]
