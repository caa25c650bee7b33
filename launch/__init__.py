"""Holds the commands: flags, and one call each.

A wheel has them as pi0_jax.launch, and as console scripts (pi0-train, pi0-serve, ...).
"""

# Any Python must be able to read this file: an old one ends here with a message, and not in a
# SyntaxError.
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    print(
        "error: pi0_jax needs Python 3.11 or newer, found", sys.version.split()[0], file=sys.stderr
    )
    sys.exit(2)
