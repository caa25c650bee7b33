"""The training step is compiled here, before the first batch is trained on.

XLA's report on the compiled step is kept with it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import TrainBatch
from pi0_jax.preprocess import Layout
from pi0_jax.train.chips import peak_flops
from pi0_jax.train.config import RunConfig
from pi0_jax.train.flops import matmul_flops
from pi0_jax.train.placement import jit_run_step
from pi0_jax.train.step import TrainState

TrainStep = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]


class CompiledStep(NamedTuple):
    """Holds the compiled training step and what is known about it.

    Attributes:
        step: (TrainState, TrainBatch) -> (TrainState, metrics).
        model_flops: the operations of the model's matrix products, forward and backward, on all
            devices. Products that are computed again (remat) are counted once.
        text: the memory that one device needs, and the operations, for people.
    """

    step: TrainStep
    model_flops: int
    text: str

    def speed(self, steps_per_second: float) -> dict[str, float]:
        """Returns the model's speed as metrics.

        Args:
            steps_per_second: the number of steps in a second.

        Returns:
            `model_tflops_per_second`, TFLOP/s on all devices together. Where the devices' peak is
            known also `model_flops_utilisation`, the share of the peak.
        """
        flops, peak = self.model_flops * steps_per_second, peak_flops(jax.devices()[0].device_kind)
        share = (
            {} if peak is None else {"model_flops_utilisation": flops / (peak * jax.device_count())}
        )
        return {"model_tflops_per_second": flops / 1e12} | share


def compile_step(
    run: RunConfig, layout: Layout, model: Pi0, state: TrainState, batch: TrainBatch
) -> CompiledStep:
    """Compiles the step for arguments of these shapes and shardings.

    Args:
        run: the run's config.
        layout: the layout of the batch's observations.
        model: the run's model.
        state: the state, or its shapes with their shardings.
        batch: a batch on the devices.
    """
    traced = jit_run_step(run, layout, model, state).trace(state, batch)
    # The same step without remat tells how many operations the model itself has.
    keeping = model.clone(options=dataclasses.replace(model.options, remat="none"))
    plain = (
        traced
        if run.remat == "none"
        else jit_run_step(run, layout, keeping, state).trace(state, batch)
    )
    compiled, flops, model_flops = (
        traced.lower().compile(),
        matmul_flops(traced.jaxpr),
        matmul_flops(plain.jaxpr),
    )
    memory = compiled.memory_analysis()
    again = f", and {flops / model_flops - 1:.0%} of them once more" if flops > model_flops else ""
    return CompiledStep(
        compiled,
        model_flops,
        f"the step as compiled, MB per device: arguments {memory.argument_size_in_bytes / 1e6:,.1f},"
        f" outputs beside them {(memory.output_size_in_bytes - memory.alias_size_in_bytes) / 1e6:,.1f},"
        f" temporaries {memory.temp_size_in_bytes / 1e6:,.1f}; {model_flops / 1e12:,.4g} TFLOP of matrix products{again}",
    )
