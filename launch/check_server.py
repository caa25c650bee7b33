"""Checks a running server without its robot: python -m launch.check_server --server=HOST:PORT.

It sends random observations, and prints what the server says of its robot and how fast it answers.
Where something is wrong it says so in one line and ends with status 2.
"""

import contextlib

from absl import flags

from . import app

with app.one_line_errors():
    from pi0_jax.serve.check import check
    from pi0_jax.serve.client import Client
    from pi0_jax.serve.wire import read_api_key

_SERVER = flags.DEFINE_string(
    "server", None, "HOST:PORT of launch.serve, or its ws:// address.", required=True
)
_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File with the key that the server asks for.")
_CALLS = flags.DEFINE_integer("calls", 20, "Observations to send.", lower_bound=1)
_SIDE = flags.DEFINE_integer("image_side", 224, "Pixels a side of the images.", lower_bound=1)
_TIMEOUT = flags.DEFINE_float(
    "timeout",
    30.0,
    "Seconds for connecting, while a server that compiles lets clients wait; then for each answer.",
    lower_bound=0.0,
)


@app.command
def main() -> None:
    client = Client(
        _SERVER.value,
        api_key=read_api_key(_KEY_FILE.value),
        timeout=_TIMEOUT.value,
        start_timeout=_TIMEOUT.value,
    )
    with contextlib.closing(client):
        for line in check(client, calls=_CALLS.value, image_size=(_SIDE.value, _SIDE.value)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
