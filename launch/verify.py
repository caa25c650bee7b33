"""Runs known-answer vectors of the published π0 and π0.5 on the device at hand.

python -m launch.verify [--dtype=bfloat16]
"""

import jax
from absl import flags

from pi0_jax import verify

from . import app, shared

_VECTORS = flags.DEFINE_multi_string(
    "vectors",
    [str(verify.SHIPPED_VECTORS), str(verify.SHIPPED_PI05_VECTORS)],
    "Vectors file (npz); may be repeated.",
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
_CACHE = shared.compilation_cache()


@app.command
def main() -> int:
    shared.tell_and_keep(_CACHE)
    failures = [_failures(path) for path in _VECTORS.value]
    return 1 if any(failures) else 0


def _failures(path: str) -> int:
    """Prints a table of a file's outputs, and returns how many are not reproduced."""
    vectors = verify.load_vectors(path)
    print(f"{path} on {jax.devices()[0].device_kind}, {_DTYPE.value}, JAX {jax.__version__}")
    print(f"{'output':<84} {'max abs':>9} {'max rel':>9} {'tolerance':>9}")
    failures = total = 0
    for c in verify.compare(vectors, _DTYPE.value):
        total, failures = total + 1, failures + (not c.ok)
        print(
            f"{c.name:<84} {c.absolute:9.1e} {c.relative:9.1e} {c.tolerance:9.1e} {'ok' if c.ok else 'FAIL'}"
        )
    print(f"{total - failures} of {total} ok")
    return failures


if __name__ == "__main__":
    main()
