"""This package is the model, for those who build on it.

    model = Pi0(VARIANTS["nano"])                                   # "pi0" is the published size
    params = model.init(key, method=Pi0.declare)["params"]          # the published tree
    actions = sample(params, observation, noise, model=model, num_steps=10)

Training minimises `pi0_jax.flow.loss` of `Pi0.velocity`.
"""

from pi0_jax.models.layers import ComputeOptions
from pi0_jax.models.pi0 import VARIANTS, Pi0, Pi0Config
from pi0_jax.models.sampling import sample

__all__ = ["VARIANTS", "ComputeOptions", "Pi0", "Pi0Config", "sample"]
