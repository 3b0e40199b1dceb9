"""The program and the trainer of the PyTorch adapter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.torch import (
    compiled,
    cuda_graphs,
    dropout_rng,
    forward_trace,
    loops,
    model,
    optimizers,
    recurrent,
)
from adapters.torch.layers import BuildOptions
from harness.core.adapter import Epoch, Examples, Float, Plan, Split, Trainer, Weights
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import State, last_rate, velocities

CHUNK = 4096  # rows of a forward pass in `predict`, to limit its memory


class TorchProgram:
    """See `harness.core.adapter.Program`. Owns the module and the functions compiled from it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[plan.dtype]
        unrolled = plan.execution == "compiled"
        self.model = model.build(plan.network, BuildOptions(self.dtype, self.device, unrolled))
        self.model.module.mixed = plan.precision == "bf16"
        self._criterion = model.criterion(plan.loss)
        self._compiler: compiled.Compiler | None = None
        if plan.execution == "compiled":
            self._compiler = compiled.Compiler()
            module = self.model.module
            if plan.rule.impl == "shared":
                self._step = self._compiler(compiled.training_step(module, self._criterion, plan.rule))
            else:
                self._gradient = self._compiler(compiled.gradient(module, self._criterion))

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run."""
        return TorchTrainer(self, examples, rule, seed)

    def compilations(self) -> int:
        """Return how often torch.compile has called its backend for this program."""
        return self._compiler.compilations if self._compiler else 0

    def settings(self) -> dict[str, object]:
        """Describe the optimizer, what is compiled, and the kernels of recurrent layers."""
        settings = optimizers.describe(self.optimizer(self.plan.rule))
        graph = "gather, forward, backward" + (", update" if self.plan.rule.impl == "shared" else "")
        settings["compiled"] = graph if self._compiler else ""
        settings["compile_cache"] = bool(self._compiler) and torch._inductor.config.fx_graph_cache
        settings["xla"] = False
        if self.device.type == "cuda":
            settings["cuda_graph"] = self.plan.execution == "epoch"
        if self.plan.precision == "bf16":
            settings["autocast"] = "bfloat16"
            settings["float32_layers"] = list(self._forward_trace.float32_layers)
        if recurrent.steps(self.plan.network):
            settings["recurrent"] = "unrolled" if self._compiler else "fused"
            kernels = [name for name in self._forward_trace.operations if recurrent.is_kernel(name)]
            settings["recurrent_kernels"] = [] if self._compiler else kernels
        return settings

    @cached_property
    def _forward_trace(self) -> forward_trace.ForwardTrace:
        return forward_trace.trace_forward(self.model, self.device)

    def loop(
        self, inputs: tuple[Tensor, ...], y: Tensor, rule: Rule, optimizer: torch.optim.Optimizer
    ) -> loops.Loop:
        """Return the loop of the plan's execution over a training split."""
        run = loops.Run(self.model, self._criterion, optimizer, inputs, y, self.plan.batch_size, self.device)
        match self.plan.execution, rule.impl:
            case "idiomatic", _:
                return loops.idiomatic(run)
            case "compiled", "shared":
                return loops.compiled_step(run, self._step, rule)
            case "compiled", _:
                return loops.compiled_gradient(run, self._gradient)
            case "epoch", _:
                return cuda_graphs.epoch(run, rule, cuda_graphs.graph_capture(self.device))
            case _:
                return loops.eager(run)

    def optimizer(self, rule: Rule) -> torch.optim.Optimizer:
        """Build the optimizer of a run, with zero state."""
        # the tutorial leaves the choice to torch, which by default loops over parameters on a CPU
        fused = self.plan.execution != "idiomatic"
        capturable = self.device.type == "cuda" and self.plan.execution == "epoch"
        return optimizers.make(rule, list(self.model.parameters.values()), fused, capturable)


class TorchTrainer:
    """See `harness.core.adapter.Trainer`."""

    def __init__(self, program: TorchProgram, examples: Examples, rule: Rule, seed: int) -> None:
        self._program, self._rule, self._seed = program, rule, seed
        self._device = program.device
        self._module = program.model.module
        sample = program.plan.network.input
        input_dtype = torch.int64 if sample.vocabulary else program.dtype
        self._inputs: dict[str, tuple[Tensor, ...]] = {
            split: (torch.tensor(x, dtype=input_dtype),) for split, x in examples.x.items()
        }
        if sample.lengths:
            assert examples.lengths is not None
            for split, lengths in examples.lengths.items():
                self._inputs[split] += (torch.tensor(lengths, dtype=torch.int64),)
        classes = program.plan.loss == "cross_entropy"
        target_dtype = torch.int64 if classes else program.dtype
        self._y = torch.tensor(examples.y["train"], dtype=target_dtype)
        if program.plan.execution != "idiomatic":
            self._inputs = {split: self._on_device(inputs) for split, inputs in self._inputs.items()}
            self._y = self._y.to(self._device)
        self._losses: list[Tensor] = []

    def load(self, weights: Weights, state: State | None = None) -> None:
        """Load weights, and start a training or resume one from `state`."""
        program, rule = self._program, self._rule
        program.model.load(weights)
        self._optimizer = program.optimizer(rule)
        self._steps, self._rate = (state.steps, state.rate) if state else (0, 0.0)
        if state is not None:
            slots = optimizers.zero_slots(rule, list(program.model.parameters.values()))
            program.model.load_slots(velocities(state), slots, rule.slots)
            optimizers.load_slots(self._optimizer, rule, state.steps, slots)
        self._loop = program.loop(self._inputs["train"], self._y, rule, self._optimizer)
        dropout_rng.restore(self._device, self._seed, self._steps, state.masks if state else {})

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Train epoch after epoch; requests the next epoch without waiting for a GPU."""
        for order, rates in epochs:
            self._steps += len(order)
            self._rate = last_rate(rates, self._rate)
            self._losses = self._loop(torch.from_numpy(order).to(torch.int64), rates.tolist())

    def losses(self) -> npt.NDArray[np.float64]:
        """Return the losses of the last epoch, float64 `[steps]`."""
        return np.asarray(torch.stack(self._losses).to("cpu", torch.float64).numpy())

    def predict(self, split: Split) -> Float:
        """Return the logits of a split, `[rows, outputs]`."""
        self._module.eval()
        with torch.inference_mode():
            parts = zip(*(torch.split(x, CHUNK) for x in self._inputs[split]), strict=True)
            chunks = [self._module(*self._on_device(part)) for part in parts]
        self._module.train()
        return np.asarray(torch.cat(chunks).cpu().numpy())

    def weights(self) -> dict[str, Float]:
        """Return the current canonical weights."""
        return self._program.model.weights()

    def state(self) -> State:
        """Return step count, slots in the canonical layout, and the state of torch's generator."""
        model, rule = self._program.model, self._rule
        slots = model.slots(optimizers.read_slots(self._optimizer, rule), rule.slots)
        masks = dropout_rng.state(self._device) if model.network.has_dropout() else {}
        return State(self._steps, self._rate, slots, masks)

    def sync(self) -> None:
        """Wait for the GPU; on a CPU every call has finished when it returns."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _on_device(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._device) for tensor in tensors)
