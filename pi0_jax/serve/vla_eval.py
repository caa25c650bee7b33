"""Serves a policy to vla-eval (PyPI: vla-eval 0.8.0), whose messages are others than openpi's.

    python -m launch.serve --checkpoint=DIR                                  the policy's Python
    VLA -m pi0_jax.serve.vla_eval --args.server=HOST:PORT --address=:8001    vla-eval's Python
    vla-eval run --config FILE --server-url ws://127.0.0.1:8001              its own command

It is a client of launch.serve in vla-eval's environment, which needs neither JAX nor TensorFlow.
"""

import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import (
    GRIPPER_CLOSE_POS,
    IMAGE_RGB,
    LANGUAGE,
    POSITION_DELTA,
    RAW,
    ROTATION_AA,
    STATE_EEF_POS_AA_GRIP,
    DimSpec,
)

from pi0_jax.embodiments.record import Embodiment
from pi0_jax.errors import InputError
from pi0_jax.observation import RawObservation
from pi0_jax.serve.client import Client

# What vla-eval's LIBERO calls the cameras of our record, and what it must send and how.
_LIBERO_CAMERAS = {"base": "agentview", "wrist": "wrist"}
_LIBERO_PARAMETERS = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
# Benchmarks use either word.
_STATES = ("states", "state")


class Pi0ModelServer(PredictModelServer):
    """Answers vla-eval with the actions of a policy server of ours.

    A chunk's first actions are executed, as many as the robot's record says.
    """

    def __init__(self, server: str, cameras: dict[str, str] | None = None) -> None:
        """Connects, and waits while the policy's server is compiling.

        Args:
            server: HOST:PORT of launch.serve.
            cameras: the record's cameras -> their names in the benchmark. None: those of vla-eval's
                LIBERO for the record libero, and equal names for others.

        Raises:
            InputError: the server does not send a record, or `cameras` has others than the record.
            TimeoutError: no server answers.
        """
        self._client = Client(server, timeout=300.0)
        record = self._client.metadata.get("embodiment")
        if record is None:
            raise InputError(f"{server}: expected a server that sends its robot's record")
        self.record = Embodiment.from_json(record, stored=True)
        super().__init__(chunk_size=self.record.execute_steps)
        names = list(self.record.cameras.values())
        self._libero = self.record.name == "libero"
        self._cameras = cameras or (_LIBERO_CAMERAS if self._libero else {n: n for n in names})
        if set(self._cameras) != set(names):
            raise InputError(f"cameras: expected {sorted(names)}, found {sorted(self._cameras)}")
        self._episodes: dict[str, str] = {}

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Notes the task and the episode's number, which decide the noise with the step."""
        await super().on_episode_start(config, ctx)
        task = config.get("task", {})
        self._episodes[ctx.session_id] = f"{task.get('name')} {task.get('episode_idx')}"

    def predict(self, obs: Mapping[str, Any], ctx: SessionContext) -> dict[str, np.ndarray]:
        """Returns a chunk, float32[H, A], for an observation of the benchmark."""
        seed = zlib.crc32(f"{self._episodes.get(ctx.session_id)} {ctx.step}".encode())
        return {"actions": self._client.act([self._read(obs)], [seed])[0]}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Says what the actions are, so that vla-eval compares them with the benchmark's."""
        if not self._libero:
            return {"actions": RAW}
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """Says what the benchmark must send."""
        state = {"state": STATE_EEF_POS_AA_GRIP if self._libero else RAW}
        return {**dict.fromkeys(self._cameras.values(), IMAGE_RGB), **state, "language": LANGUAGE}

    def get_observation_params(self) -> dict[str, Any]:
        """Asks vla-eval's LIBERO for the second camera and the state, as the datasets have it."""
        return _LIBERO_PARAMETERS if self._libero else {}

    def _read(self, obs: Mapping[str, Any]) -> RawObservation:
        images, found = obs.get("images", {}), ", ".join(map(str, obs))
        if missing := [name for name in self._cameras.values() if name not in images]:
            raise InputError(f"images: expected {missing[0]!r}, found {', '.join(images)}")
        state = next((obs[name] for name in _STATES if name in obs), None)
        if state is None or "task_description" not in obs:
            raise InputError(
                f"expected 'states' (or 'state') and 'task_description', found {found}"
            )
        return {
            "images": {ours: images[theirs] for ours, theirs in self._cameras.items()},
            "state": np.asarray(state, np.float32),
            "prompt": obs["task_description"],
        }


def main() -> None:
    """Runs vla-eval's own entry point; wrong input is one line, as in launch."""
    try:
        run_server(Pi0ModelServer)
    except (InputError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
