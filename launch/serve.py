"""Serves a checkpoint to robots: python -m launch.serve --checkpoint=DIR [--robot=droid]

Clients of openpi work unchanged, with the observation keys that the robot's record names.
"""

import sys
from functools import partial

from absl import flags

from pi0_jax.embodiments.keys import check_prompt
from pi0_jax.policy import Policy
from pi0_jax.policy.limits import CHOICES
from pi0_jax.preprocess import canvas_for

from . import app, shared

with app.one_line_errors():
    from pi0_jax.serve import server
    from pi0_jax.serve.service import Service
    from pi0_jax.serve.wire import read_api_key

# fmt: off
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir or step.", required=True)
_ROBOT = flags.DEFINE_string("robot", None, "Whose statistics and keys, if there are several.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to bind; 0.0.0.0: every network's.")
_PORT = flags.DEFINE_integer("port", 8000, "0: any that is free.", lower_bound=0, upper_bound=65535)
_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File with the key that clients must show.")
_IMAGES = flags.DEFINE_list("image_sizes", ["224x224"], "To compile for; others become one of them.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["1"], "Observations in a request to compile for.")
_PROMPT = flags.DEFINE_string("default_prompt", None, "For observations without one.")
_UNTRAINED = flags.DEFINE_integer("untrained", None, "A control: weights drawn with this seed.")
_STEPS = flags.DEFINE_integer("num_steps", None, "Euler steps; else the run's.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "To compute in; else the run's.")
_LIMITS = flags.DEFINE_enum("limits", "tell", list(CHOICES),
    "States and actions outside of the policy's data: name them, cut off, or refuse the request;"
    " a robot's hard limits always cut off.")
_LIMIT = flags.DEFINE_integer("max_message_mib", 16, "Largest message.", lower_bound=1)
_CONNECTIONS = flags.DEFINE_integer("max_connections", 64, "Clients at a time.", lower_bound=1)
_CACHE = shared.compilation_cache()
# fmt: on


def _load(sizes: list[tuple[int, int]], batches: list[int]) -> Service:
    policy = Policy.open(
        _CHECKPOINT.value, num_steps=_STEPS.value, dtype=_DTYPE.value, limits=CHOICES[_LIMITS.value]
    )
    policy = policy if _UNTRAINED.value is None else policy.untrained(_UNTRAINED.value)
    name, canvases = _ROBOT.value, [canvas_for([size]) for size in sizes]
    robot, length, prompt = policy.robot(name).embodiment, policy.config.horizon, _PROMPT.value
    act = lambda *seen: policy.finish(policy.prepare(*seen, robot=name, canvases=canvases))  # noqa: E731
    service = Service(act, robot, horizon=length, batch_sizes=batches, default_prompt=prompt)
    print(f"compiling for {robot.name}", flush=True)
    policy.warm_up(robot=name, image_sizes=sizes, batch_sizes=service.batch_sizes)
    return service


@app.command
def main() -> None:
    found = shared.matched(_IMAGES, r"(0*[1-9]\d*)x(0*[1-9]\d*)", "sizes like 224x224")
    sizes = [(int(height), int(width)) for height, width in found]
    batches = [int(n) for (n,) in shared.matched(_BATCHES, r"(0*[1-9]\d*)", "positive numbers")]
    key, host, largest = read_api_key(_KEY_FILE.value), _HOST.value, _LIMIT.value * 2**20
    if _PROMPT.value is not None:
        check_prompt(_PROMPT.value, "--default_prompt")
    if key is None and not server.is_loopback(host):
        danger = f"anyone who reaches {host}:{_PORT.value} can use this policy"
        print(f"warning: {danger}: no --api_key_file is given", file=sys.stderr, flush=True)
    shared.tell_and_keep(_CACHE)
    options = server.Options(
        host, _PORT.value, key, max_message_bytes=largest, max_connections=_CONNECTIONS.value,
        max_in_flight_bytes=max(server.Options.max_in_flight_bytes, 2 * largest),
    )  # fmt: skip
    on_state = lambda state, port: print(f"{state} on ws://{host}:{port}", flush=True)  # noqa: E731
    server.run(partial(_load, sizes, batches), options, on_state)
    print("stopped")


if __name__ == "__main__":
    main()
