"""Makes tiny policies of known robots, in memory and as a checkpoint on the disk.

Their parameters and statistics are drawn at random.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pi0_jax.checkpoints import Description, RunCheckpoints
from pi0_jax.embodiments import EMBODIMENTS, ActionDim, Embodiment, StateDim
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.observation import RawObservation
from pi0_jax.policy import Policy
from pi0_jax.policy_config import model_config
from pi0_jax.preprocess import Robot, normalize
from pi0_jax.preprocess.record_fit import _declared_range
from pi0_jax.preprocess.tokenizer import Tokenizer
from pi0_jax.train.config import RunConfig, policy_half, training_half
from tests.step_data import reach_config

PROMPT = "pick up the red block"
TOKENIZER = Tokenizer.open("small")


def run_config(**changes) -> RunConfig:
    sizes = dict(variant="pico", action_dim=16, horizon=10, max_tokens=24, loss_dims="padded")
    return reach_config(**sizes | changes)


def robot(name: str, record: Embodiment | None = None) -> Robot:
    """Returns a record with any statistics that lie within the ranges that it declares.

    The states of a record that is given take all of their ranges.
    """
    embodiment, rng = record or EMBODIMENTS[name], np.random.default_rng(len(name))

    def drawn(dims: Sequence[StateDim | ActionDim]) -> np.ndarray:
        means, deviations = rng.normal(size=len(dims)), rng.uniform(0.5, 2, len(dims))
        low, high = np.transpose([_declared_range(dim) for dim in dims])
        if record is not None and np.isfinite(high - low).all():
            return rng.uniform(low, high, (200, len(dims)))
        return rng.normal(means, deviations, (200, len(dims))).clip(low, high)

    state, actions = (
        normalize.accumulate([drawn(dims)]) for dims in (embodiment.state, embodiment.actions)
    )
    return Robot(embodiment, normalize.Statistics(state, actions))


def parameters(run: RunConfig, seed: int = 0):
    """Returns random parameters, none of them zero or one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.15, leaf.shape), jnp.float32),
        parameter_shapes(model_config(run)),
    )


def policy(
    *robots: str, num_steps: int | None = None, scan_layers: bool | None = None, **changes
) -> Policy:
    run = run_config(**changes)
    records = {name: robot(name) for name in robots}
    config = policy_half(run)
    return Policy(
        config, records, TOKENIZER, parameters(run), num_steps=num_steps, scan_layers=scan_layers
    )


def description(
    run: RunConfig, robots: Mapping[str, Robot], position: int, **digests: str
) -> Description:
    """Returns what a checkpoint of this run says of itself.

    `digests` are those of the datasets' indices.
    """
    return Description(
        policy_half(run), training_half(run), robots, TOKENIZER, position, digests=digests
    )


def write_checkpoint(
    workdir: Path, robots: Sequence[str], record: Embodiment | None = None, **changes
) -> Path:
    """Writes the workdir of a run that ended after one step; its policy is `policy(*robots)`.

    A record that is given is the robots' own.
    """
    run = run_config(**changes)
    params = parameters(run)
    counters = dict(step=jnp.int32(1), opt_state={"count": jnp.int32(1)}, skipped=jnp.int32(0))
    state = SimpleNamespace(params=params, ema=params, factors={}, **counters)
    saved = RunCheckpoints(workdir, keep=1)
    saved.save(
        state,
        description(run, {name: robot(name, record) for name in robots}, position=1),
        {},
    )
    saved.close()
    return workdir


def picture(rng: np.random.Generator, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Returns uint8[height, width, 3], smooth as a camera's image."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BILINEAR))


def observation(
    name: str, seed: int = 0, size: tuple[int, int] = (48, 64), prompt: str = PROMPT
) -> RawObservation:
    rng, embodiment = np.random.default_rng(seed), EMBODIMENTS[name]
    return {
        "images": {camera: picture(rng, size) for camera in embodiment.cameras.values()},
        "state": rng.normal(size=len(embodiment.state)).astype(np.float32),
        "prompt": prompt,
    }
