"""Serves a checkpoint to robots.

python -m launch.serve --checkpoint=DIR [--robot=droid] [--port=8000]

The server speaks the protocol of openpi-client. Clients of openpi work unchanged, with the
observation keys that the robot's record names.
"""

import sys
from functools import partial

from absl import flags

from pi0_jax.embodiments.keys import check_prompt
from pi0_jax.errors import InputError
from pi0_jax.policy import Policy
from pi0_jax.policy.limits import CHOICES
from pi0_jax.preprocess import canvas_for
from pi0_jax.serve import api_key

from . import app

with app.optional_imports():
    from pi0_jax.serve import server
    from pi0_jax.serve.service import Service

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir or one checkpoint in it.", required=True
)
_ROBOT = flags.DEFINE_string(
    "robot", None, "Whose statistics and keys; may be left out where the checkpoint has one robot."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to bind; 0.0.0.0 for every network that this machine is on."
)
_PORT = flags.DEFINE_integer(
    "port", 8000, "Port; 0 takes any that is free.", lower_bound=0, upper_bound=65535
)
_KEY_FILE = flags.DEFINE_string(
    "api_key_file", None, "File with the key that clients must show; none is asked for without it."
)
_IMAGES = flags.DEFINE_list(
    "image_sizes",
    ["224x224"],
    "Sizes HEIGHTxWIDTH of images to compile for; others are brought to one of them.",
)
_BATCHES = flags.DEFINE_list(
    "batch_sizes", ["1"], "Numbers of observations in one request to compile for."
)
_PROMPT = flags.DEFINE_string("default_prompt", None, "For observations without one.")
_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Euler steps; the run's if not given.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "To compute in; the run's if not given."
)
_LIMITS = flags.DEFINE_enum(
    "limits",
    "tell",
    list(CHOICES),
    "Of states and actions outside of the range that the policy's data had: name them in the reply and the log,"
    " cut actions off, or refuse the request. A robot's hard limits are cut off in any case.",
)
_LIMIT = flags.DEFINE_integer("max_message_mib", 16, "Largest message.", lower_bound=1)
_CONNECTIONS = flags.DEFINE_integer(
    "max_connections", 64, "Clients at a time; more are refused.", lower_bound=1
)
_CACHE = app.compilation_cache()


def _sizes() -> list[tuple[int, int]]:
    try:
        return [_size(text) for text in _IMAGES.value or [""]]
    except ValueError as error:
        raise InputError(
            f"--image_sizes: expected sizes like 224x224, found {','.join(_IMAGES.value)}"
        ) from error


def _size(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split("x"))
    if min(height, width) < 1:
        raise ValueError(text)
    return height, width


def _batches() -> list[int]:
    if not all(text.isdecimal() and int(text) > 0 for text in _BATCHES.value):
        raise InputError(
            f"--batch_sizes: expected positive numbers, found {','.join(_BATCHES.value)}"
        )
    return [int(text) for text in _BATCHES.value]


def _load(sizes: list[tuple[int, int]], batches: list[int]) -> Service:
    policy = Policy.open(
        _CHECKPOINT.value,
        num_steps=_STEPS.value,
        dtype=_DTYPE.value,
        limits=CHOICES[_LIMITS.value],
    )
    embodiment = policy.robot(_ROBOT.value).embodiment
    act = partial(
        policy.predict, robot=_ROBOT.value, canvases=[canvas_for([size]) for size in sizes]
    )
    service = Service(
        act,
        embodiment,
        horizon=policy.config.horizon,
        batch_sizes=batches,
        default_prompt=_PROMPT.value,
    )
    print(f"compiling for {embodiment.name}", flush=True)
    policy.warm_up(robot=_ROBOT.value, image_sizes=sizes, batch_sizes=service.batch_sizes)
    return service


@app.command
def main() -> None:
    sizes, batches = _sizes(), _batches()
    key = api_key.read(_KEY_FILE.value)
    if _PROMPT.value is not None:
        check_prompt(_PROMPT.value, "--default_prompt")
    if key is None and not server.is_loopback(_HOST.value):
        print(
            f"warning: anyone who reaches {_HOST.value}:{_PORT.value} can use this policy: no"
            " --api_key_file is given",
            file=sys.stderr,
            flush=True,
        )
    app.tell_and_keep(_CACHE)
    largest = _LIMIT.value * 2**20
    options = server.Options(
        _HOST.value,
        _PORT.value,
        key,
        max_message_bytes=largest,
        max_connections=_CONNECTIONS.value,
        max_in_flight_bytes=max(server.Options.max_in_flight_bytes, 2 * largest),
    )
    server.run(
        partial(_load, sizes, batches),
        options,
        lambda state, port: print(f"{state} on ws://{_HOST.value}:{port}", flush=True),
    )
    print("stopped")


if __name__ == "__main__":
    main()
