"""Is a benchmark for vla-eval, which it runs in its own Python: numbers that move as they are told.

A task is what tests.spoken_server understands, and its episode succeeds when the named number has
gone so far in the sense that was said.
"""

from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, STATE_EEF_POS_AA_GRIP

TASKS = {"dx +0.5": (0, 2.0), "dyaw -0.5": (5, -2.0), "gripper closed": (6, 3.0), "dy +0": (1, 1.0)}


class Moves(StepBenchmark):
    render_backends = frozenset({"gpu", "cpu"})

    def __init__(
        self,
        send_wrist_image: bool = False,
        send_state: bool = False,
        quat_no_antipodal: bool = False,
    ) -> None:
        super().__init__()
        asked = (send_wrist_image, send_state, quat_no_antipodal)
        assert all(asked), "expected what the model server asks of vla-eval's LIBERO"

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        return {}

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": name, "suite": "moves"} for name in TASKS]

    def reset(self, task: dict[str, Any]) -> np.ndarray:
        self._sum, self._task_name = np.zeros(7), task["name"]
        return self._sum

    def step(self, action: dict[str, Any]) -> StepResult:
        numbers = np.asarray(action["actions"])
        assert numbers.shape == (7,) and numbers.dtype == np.float32
        self._sum = self._sum + numbers
        place, goal = TASKS[self._task_name]
        done = bool(self._sum[place] * np.sign(goal) >= abs(goal))
        return StepResult(obs=self._sum, reward=float(done), done=done, info={})

    def make_obs(self, raw_obs: np.ndarray, task: dict[str, Any]) -> dict[str, Any]:
        image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
        return {
            "images": {"agentview": image, "wrist": image[::-1]},
            "states": np.append(raw_obs, 0.0).astype(np.float32),
            "task_description": task["name"],
        }

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": step_result.done}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": 12}

    def get_action_spec(self) -> dict[str, Any]:
        from vla_eval.specs import GRIPPER_CLOSE_POS, POSITION_DELTA, ROTATION_AA

        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, Any]:
        state = {"state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE, "raw": RAW}
        return {"agentview": IMAGE_RGB, "wrist": IMAGE_RGB, **state}
