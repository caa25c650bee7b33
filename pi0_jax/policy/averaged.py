"""A policy runs the moving average of a run's checkpoint, as a published tree."""

from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath

from pi0_jax import checkpoints
from pi0_jax.checkpoints import Description
from pi0_jax.checkpoints.finite import check_finite
from pi0_jax.models import lora, sampling
from pi0_jax.models.paths import flatten, unflatten
from pi0_jax.models.pi0 import parameter_shapes
from pi0_jax.policy_config import Dtype, PolicyConfig, model_config, trainable_part


def read(step: epath.Path, dtype: Dtype | None) -> tuple[Description, Any]:
    """Reads the description and the weights of one step's folder.

    Args:
        step: the folder.
        dtype: the dtype to compute in; None takes the run's.

    Returns:
        The description, with that dtype, and the published tree on the host, each leaf in the dtype
        in which a policy keeps it.

    Raises:
        InputError: a file is missing or damaged; the weights are not finite; the arrays are not
            those of the variant that the description names.
    """
    description = checkpoints.read_description(step).computing_in(dtype)
    return description, _averaged(step, description.policy)


def _averaged(step: epath.Path, config: PolicyConfig) -> Any:
    """Reads a checkpoint's moving average as a published tree, on the host.

    What is frozen comes from the parameters. LoRA's products are merged.
    """
    trainable, tree = trainable_part(config), parameter_shapes(model_config(config))
    factor_shapes = jax.eval_shape(partial(lora.init, rules=config.lora), jax.random.key(0), tree)
    shapes = flatten(tree)

    def host(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Stands for a NumPy array that is to be read; it takes no memory itself."""
        return np.broadcast_to(np.zeros((), dtype), shape)

    def held(path: str) -> np.ndarray:
        """Returns a placeholder with the shape and dtype in which a weight is read.

        It is float32 where LoRA's product is added to the weight, so that the sum is rounded once.
        """
        return host(
            shapes[path].shape,
            np.float32
            if lora.find(config.lora, path)
            else sampling.storage_dtype(path, config.dtype),
        )

    trained = {path: held(path) for path in shapes if trainable.trains(path)}
    frozen = {path: held(path) for path in shapes if path not in trained}
    for path, leaf in flatten(factor_shapes).items():
        trained[path] = host(leaf.shape, leaf.dtype)
    read = flatten(checkpoints.read_params(step, "ema", unflatten(trained)))
    if frozen:
        read |= flatten(checkpoints.read_part(step, "params", unflatten(frozen)))
    for path, leaf in read.items():
        check_finite(leaf, f"{step}: {path}")
    add = jax.jit(lora.add, static_argnames=("rules", "path", "dtype"))
    for path in [path for path in frozen if lora.find(config.lora, path)]:
        a, b = read.pop(f"{path}/a"), read.pop(f"{path}/b")
        merged = add(
            read[path],
            a,
            b,
            rules=config.lora,
            path=path,
            dtype=sampling.storage_dtype(path, config.dtype),
        )
        # The device computes one leaf after the other, and keeps none.
        read[path] = np.asarray(merged)
    return unflatten(read)
