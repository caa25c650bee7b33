"""Answers requests to a policy: bytes in, bytes out, no sockets.

    observation                    ->  {"actions": float32[H, A], "outside": [...],
                                        "policy_timing": {...}, "server_timing": {...}}
    {"batch": [observation, ...],  ->  {"actions": float32[n, H, A], ...}
     "seeds": [...]}

An observation is a map of the robot's client keys (observation_keys.py). It may also carry "seed",
which keys the noise. Without it the seed is 0, so that the same observation always gets the same
actions. Times are in milliseconds. "outside" holds one line for each number of the state or the
actions that lies outside of the data or of the robot's hard limits. The answer to a batch has such
a list for each observation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np

import pi0_jax
from pi0_jax.embodiments import Embodiment
from pi0_jax.embodiments.keys import UnreadKeys, shortened, to_observation
from pi0_jax.errors import InputError, NotFiniteError
from pi0_jax.observation import RawObservation
from pi0_jax.serve import wire

# Takes n observations and uint32[n] seeds. Returns chunks of actions float32[n, H, A] in robot
# units, and for each chunk a list of what lies outside of what the policy knows.
Act: TypeAlias = Callable[
    [Sequence[RawObservation], np.ndarray], tuple[np.ndarray, Sequence[Sequence[object]]]
]

SEED, SEEDS, BATCH = "seed", "seeds", "batch"


class Service:
    """Answers requests with one policy for one robot.

    Several threads must not use one service at the same time.

    Attributes:
        batch_sizes: the numbers of rows that the policy takes, in rising order, with 1 among them.
        metadata: what a client is told when it connects: the robot's record, its names and rates,
            the chunk's length, the batch sizes and versions. "image_rotation" is the angle in degrees by
            which clients turn their images.
    """

    def __init__(
        self,
        act: Act,
        embodiment: Embodiment,
        *,
        horizon: int,
        batch_sizes: Sequence[int] = (1,),
        default_prompt: str | None = None,
    ) -> None:
        """Prepares the metadata.

        Args:
            act: the policy.
            embodiment: the robot's record.
            horizon: the number of steps in a chunk.
            batch_sizes: the numbers of rows that `act` gets. Fewer rows are padded, more refused.
            default_prompt: the prompt of observations that carry none.
        """
        self._act, self._embodiment, self._default_prompt = act, embodiment, default_prompt
        self.batch_sizes = tuple(sorted({1, *batch_sizes}))
        self._unread = UnreadKeys(embodiment.name)
        keys = embodiment.keys
        self.metadata: dict[str, Any] = {
            "robot": embodiment.name,
            "embodiment": embodiment.to_json(),
            "control_hz": embodiment.control_hz,
            "execute_steps": embodiment.execute_steps,
            "horizon": horizon,
            "actions": [dim.name for dim in embodiment.actions],
            "cameras": dict(keys.cameras),
            "state": [list(part) for part in keys.state],
            "channel_first": keys.channel_first,
            "image_rotation": embodiment.image_rotation,
            "batch_sizes": list(self.batch_sizes),
            "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy")}
            | {"pi0_jax": pi0_jax.__version__},
        }

    def answer(self, message: bytes, received: float) -> bytes:
        """Returns the reply to one request.

        Args:
            message: the packed request; see the head of this file.
            received: when the request came, by time.perf_counter().

        Raises:
            InputError: the request is wrong; the message names the field.
            NotFiniteError: the policy's numbers are not finite; the message says which.
        """
        start = time.perf_counter()
        request = wire.unpack(message)
        batched = isinstance(request, Mapping) and BATCH in request
        observations, seeds = self._batch(request) if batched else self._single(request)
        unpacked, count = time.perf_counter(), len(observations)
        missing = next(size for size in self.batch_sizes if size >= count) - count
        padded = np.array(seeds + seeds[:1] * missing, np.uint32)
        actions, outside = self._act(observations + observations[:1] * missing, padded)
        acted = time.perf_counter()
        # A robot must not execute such actions. The weights are at fault, not the client.
        if not np.isfinite(actions).all():
            raise NotFiniteError("the policy's actions are not finite")
        told = [[str(one) for one in row] for row in outside[:count]]
        inferred = {"infer_ms": 1e3 * (acted - unpacked)}
        before = {"queue_ms": 1e3 * (start - received), "unpack_ms": 1e3 * (unpacked - start)}
        return wire.pack(
            {
                "actions": actions[:count] if batched else actions[0],
                "outside": told if batched else told[0],
                "policy_timing": inferred,
                "server_timing": before | inferred,
            }
        )

    def _single(self, request: Any) -> tuple[list[RawObservation], list[int]]:
        fields = dict(request) if isinstance(request, Mapping) else request
        seed = fields.pop(SEED) if isinstance(fields, dict) and SEED in fields else 0
        return [self._observation(fields)], [_seed(seed, SEED)]

    def _observation(self, fields: Any) -> RawObservation:
        return to_observation(fields, self._embodiment, self._default_prompt, unread=self._unread)

    def _batch(self, request: Mapping[str, Any]) -> tuple[list[RawObservation], list[int]]:
        if extra := [key for key in request if key not in (BATCH, SEEDS)]:
            fault = f"{shortened(repr(extra[0]))} is not expected beside {BATCH!r}"
            raise InputError(f"{fault}; expected {SEEDS!r}")
        rows, most = request[BATCH], self.batch_sizes[-1]
        if not isinstance(rows, list) or not 1 <= len(rows) <= most:
            found = len(rows) if isinstance(rows, list) else type(rows).__name__
            expected = f"expected a list of 1 to {most} observations"
            raise InputError(f"{BATCH!r}: {expected}, found {found}")
        seeds = request[SEEDS] if SEEDS in request else [0] * len(rows)
        numbers = isinstance(seeds, list) or (isinstance(seeds, np.ndarray) and seeds.ndim == 1)
        if not numbers or len(seeds) != len(rows):
            expected = f"expected {len(rows)}, one for each observation"
            raise InputError(f"{SEEDS!r}: {expected}, found {shortened(seeds)}")
        observations = []
        for i, row in enumerate(rows):
            try:
                observations.append(self._observation(row))
            except InputError as error:
                raise InputError(f"{BATCH!r}, observation {i}: {error}") from error
        return observations, [_seed(seed, f"{SEEDS}/{i}") for i, seed in enumerate(seeds)]


def _seed(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**32:
        found = shortened(repr(value))
        raise InputError(f"{key!r}: expected a whole number in [0, 2^32), found {found}")
    return int(value)
