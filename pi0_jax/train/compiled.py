"""The training step, compiled before the first batch is trained on, and what XLA says of it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from pi0_jax.chips import peak_flops
from pi0_jax.models.pi0 import Pi0
from pi0_jax.observation import TrainBatch
from pi0_jax.preprocess import Layout
from pi0_jax.train.config import RunConfig
from pi0_jax.train.flops import matmul_flops
from pi0_jax.train.placement import jit_run_step
from pi0_jax.train.step import TrainState

TrainStep = Callable[[TrainState, TrainBatch], tuple[TrainState, dict[str, jax.Array]]]


class CompiledStep(NamedTuple):
    step: TrainStep
    model_flops: int  # of the model's matrix products, forward and backward, without what is computed again; on all devices
    text: str  # memory of one device, and operations

    def speed(self, steps_per_second: float) -> dict[str, float]:
        """Metrics: the model's TFLOP/s on all devices; their share of what the devices could do at most, where that is known."""
        flops, peak = self.model_flops * steps_per_second, peak_flops(jax.devices()[0].device_kind)
        share = (
            {} if peak is None else {"model_flops_utilisation": flops / (peak * jax.device_count())}
        )
        return {"model_tflops_per_second": flops / 1e12} | share


def compile_step(
    run: RunConfig, layout: Layout, model: Pi0, state: TrainState, batch: TrainBatch
) -> CompiledStep:
    """For arguments of these shapes and shardings."""
    traced = jit_run_step(run, layout, model, state).trace(state, batch)
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
