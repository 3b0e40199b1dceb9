"""PyTorch behind the harness's protocol: adapter, program, trainer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.torch import (
    compiled as compiling,
)
from adapters.torch import (
    cuda_graphs,
    dropout_rng,
    loops,
    model,
    optimizers,
    recurrent,
)
from adapters.torch.layers import BuildOptions
from harness.core.adapter import (
    Adapter,
    AdapterOptions,
    Epoch,
    Examples,
    Execution,
    Float,
    Plan,
    Precision,
    Program,
    Split,
    Trainer,
    Weights,
    factors,
)
from harness.core.machine import matmul, precision
from harness.core.training.optimizers import Rule
from harness.core.training.training_state import State, last_rate, velocities
from harness.core.validation import ConfigError, Mistake

EXECUTIONS: dict[str, tuple[Execution, ...]] = {
    "cpu": ("idiomatic", "eager", "compiled"),
    "cuda": ("idiomatic", "eager", "compiled", "epoch"),
}
CHUNK = 4096  # rows of a forward pass in `predict`, which bounds its memory


def adapter(options: AdapterOptions) -> Adapter:
    """PyTorch in this process, with the threads that were asked for.

    Raises ConfigError if torch doesn't see the device.
    """
    device = torch.device(options.device)
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if f"{device.type}:{device.index or 0}" not in devices and device.type != "cpu":
        problem = f"torch {torch.__version__} sees no {options.device!r} here"
        raise ConfigError([Mistake("device", problem, ", ".join(devices))])
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if refused := precision.mistakes(options.precision, options.device, capability):
        raise ConfigError(refused)
    _round_products(options.precision)
    torch.set_num_threads(options.threads)
    if torch.get_num_interop_threads() != options.threads:
        torch.set_num_interop_threads(options.threads)
    return TorchAdapter(options)


def _round_products(wanted: Precision) -> None:
    """Whether a card may round the factors of float32 products: torch's own default is that convolutions and
    recurrent layers may and matrix products may not. Its CPU kernels heed the first line too."""
    torch.set_float32_matmul_precision("high" if wanted == "tf32" else "highest")
    torch.backends.cuda.matmul.allow_tf32 = wanted == "tf32"
    torch.backends.cudnn.allow_tf32 = wanted == "tf32"


class TorchAdapter:
    """See `harness.core.adapter.Adapter`."""

    def __init__(self, options: AdapterOptions) -> None:
        self._device = torch.device(options.device)
        self._precision = options.precision

    def executions(self) -> tuple[Execution, ...]:
        """A whole epoch is for a card alone, see `graphs`."""
        return EXECUTIONS[self._device.type]

    def environment(self) -> dict[str, object]:
        """What torch says about itself and the device."""
        on_cuda = self._device.type == "cuda"
        found: dict[str, object] = {
            "torch": torch.__version__,
            "device": str(self._device),
            "devices": [torch.cuda.get_device_name(self._device)] if on_cuda else ["cpu"],
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
            "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }
        if on_cuda:
            found |= {
                "device_name": torch.cuda.get_device_name(self._device),
                "cuda": torch.version.cuda,
                "cuda_driver": torch._C._cuda_getDriverVersion(),  # type: ignore[attr-defined]
                "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            }
        return found

    def build(self, plan: Plan) -> Program:
        """The program of a plan; raises ConfigError for what torch does not have."""
        mistakes = []
        if plan.execution not in self.executions():
            problem = f"torch on {self._device.type} has no execution {plan.execution!r}"
            mistakes.append(Mistake("execution", problem, ", ".join(self.executions())))
        if plan.xla:
            mistakes.append(Mistake("framework.xla", "torch does not compile with XLA", "false"))
        steps = recurrent.steps(plan.network)
        if plan.execution == "compiled" and steps > recurrent.UNROLLED_STEPS:
            problem = f"torch.compile unrolls recurrent layers, and {steps} steps would take it minutes"
            allowed = (
                f"idiomatic, eager, or at most {recurrent.UNROLLED_STEPS} steps in all layers and directions"
            )
            mistakes.append(Mistake("execution", problem, allowed))
        if mistakes:
            raise ConfigError(mistakes)
        return TorchProgram(plan)

    def multiply(self, size: int, repeats: int) -> list[float]:
        """torch.mm into a result that is there."""
        dtype: torch.dtype = getattr(torch, factors(self._precision))
        left, right, product = torch.rand(3, size, size, dtype=dtype, device=self._device)

        def multiply() -> None:
            torch.mm(left, right, out=product)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        return matmul.times(multiply, repeats)

    def start_device_peak(self) -> bool:
        """The caching allocator counts what tensors take."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return True

    def device_peak_mb(self) -> float | None:
        """Of tensors; what the allocator keeps in reserve for others is not in it."""
        on_cuda = self._device.type == "cuda"
        return torch.cuda.max_memory_allocated(self._device) / 1e6 if on_cuda else None


class TorchProgram:
    """See `harness.core.adapter.Program`. Holds the module and what was compiled from it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[plan.dtype]
        compiled = plan.execution == "compiled"
        self.model = model.build(plan.network, BuildOptions(self.dtype, self.device, unrolled=compiled))
        self.model.module.mixed = plan.precision == "bf16"
        self._seen: model.Seen | None = None
        self._criterion = model.criterion(plan.loss)
        self._compiler: compiling.Compiler | None = None
        if compiled:
            self._compiler = compiling.Compiler()
            module = self.model.module
            if plan.rule.impl == "shared":
                self._step = self._compiler(compiling.whole_step(module, self._criterion, plan.rule))
            else:
                self._gradient = self._compiler(compiling.gradient(module, self._criterion))

    def trainer(self, examples: Examples, rule: Rule, seed: int) -> Trainer:
        """Start a run."""
        return TorchTrainer(self, examples, rule, seed)

    def compilations(self) -> int:
        """How often torch.compile has called its backend for this program."""
        return self._compiler.compilations if self._compiler else 0

    def settings(self) -> dict[str, object]:
        """Who updates the weights, and what is compiled."""
        found = optimizers.describe(self.optimizer(self.plan.rule))
        whole = "gather, forward, backward" + (", update" if self.plan.rule.impl == "shared" else "")
        found["compiled"] = whole if self._compiler else ""
        found["compile_cache"] = bool(self._compiler) and torch._inductor.config.fx_graph_cache
        found["xla"] = False
        if self.device.type == "cuda":
            found["cuda_graph"] = self.plan.execution == "epoch"
        if self.plan.precision == "bf16":
            found |= {"autocast": "bfloat16", "float32_layers": list(self._look().float32)}
        if recurrent.steps(self.plan.network):
            found["recurrent"] = "unrolled" if self._compiler else "fused"
            kernels = [name for name in self._look().operations if recurrent.is_kernel(name)]
            found["recurrent_kernels"] = [] if self._compiler else kernels
        return found

    def _look(self) -> model.Seen:
        if self._seen is None:
            self._seen = model.look_into(self.model, self.device)
        return self._seen

    def loop(
        self, inputs: tuple[Tensor, ...], y: Tensor, rule: Rule, optimizer: torch.optim.Optimizer
    ) -> loops.Loop:
        """The plan's execution on a training split."""
        run = loops.Run(self.model, self._criterion, optimizer, inputs, y, self.plan.batch_size, self.device)
        match self.plan.execution, rule.impl:
            case "idiomatic", _:
                return loops.idiomatic(run)
            case "compiled", "shared":
                return loops.compiled_whole(run, self._step, rule)
            case "compiled", _:
                return loops.compiled(run, self._gradient)
            case "epoch", _:
                return cuda_graphs.epoch(run, rule, cuda_graphs.recorder(self.device))
            case _:
                return loops.eager(run)

    def optimizer(self, rule: Rule) -> torch.optim.Optimizer:
        """The optimizer of a run, its state zero."""
        # the tutorial leaves the choice to torch, which prefers its loop over parameters on a CPU
        fused = self.plan.execution != "idiomatic"
        recorded = self.device.type == "cuda" and self.plan.execution == "epoch"
        return optimizers.make(rule, list(self.model.parameters.values()), fused, recorded)


class TorchTrainer:
    """See `harness.core.adapter.Trainer`."""

    def __init__(self, program: TorchProgram, examples: Examples, rule: Rule, seed: int) -> None:
        self._program, self._rule, self._seed = program, rule, seed
        self._device = program.device
        self._module = program.model.module
        given = program.plan.network.input
        kind = torch.int64 if given.vocabulary else program.dtype
        self._inputs: dict[str, tuple[Tensor, ...]] = {
            split: (torch.tensor(x, dtype=kind),) for split, x in examples.x.items()
        }
        if given.lengths:
            assert examples.lengths is not None
            for split, lengths in examples.lengths.items():
                self._inputs[split] += (torch.tensor(lengths, dtype=torch.int64),)
        classes = program.plan.loss == "cross_entropy"
        target = torch.int64 if classes else program.dtype
        self._y = torch.tensor(examples.y["train"], dtype=target)
        if program.plan.execution != "idiomatic":
            self._inputs = {split: self._on_device(inputs) for split, inputs in self._inputs.items()}
            self._y = self._y.to(self._device)
        self._losses: list[Tensor] = []

    def load(self, weights: Weights, state: State | None = None) -> None:
        """Start over, or go on from a state."""
        program, rule = self._program, self._rule
        program.model.load(weights)
        self._optimizer = program.optimizer(rule)
        self._steps, self._rate = (state.steps, state.rate) if state else (0, 0.0)
        if state is not None:
            slots = optimizers.slots(rule, list(program.model.parameters.values()))
            program.model.load_slots(velocities(state), slots, rule.slots)
            optimizers.take_state(self._optimizer, rule, state.steps, slots)
        self._loop = program.loop(self._inputs["train"], self._y, rule, self._optimizer)
        dropout_rng.start(self._device, self._seed, self._steps, state.masks if state else {})

    def train(self, epochs: Iterable[Epoch]) -> None:
        """Train; asks for the next epoch before a GPU is done."""
        for order, rates in epochs:
            self._steps += len(order)
            self._rate = last_rate(rates, self._rate)
            self._losses = self._loop(torch.from_numpy(order).to(torch.int64), rates.tolist())

    def losses(self) -> npt.NDArray[np.float64]:
        """The losses of the last epoch, float64 `[steps]`."""
        return np.asarray(torch.stack(self._losses).to("cpu", torch.float64).numpy())

    def predict(self, split: Split) -> Float:
        """The logits of a split, `[rows, outputs]`."""
        self._module.eval()
        with torch.inference_mode():
            parts = zip(*(torch.split(x, CHUNK) for x in self._inputs[split]), strict=True)
            chunks = [self._module(*self._on_device(part)) for part in parts]
        self._module.train()
        return np.asarray(torch.cat(chunks).cpu().numpy())

    def weights(self) -> dict[str, Float]:
        """The canonical weights as they are now."""
        return self._program.model.weights()

    def state(self) -> State:
        """Steps, slots in the canonical layout, and where torch's stream of random numbers is."""
        model, rule = self._program.model, self._rule
        slots = model.slots(optimizers.state_of(self._optimizer, rule), rule.slots)
        masks = dropout_rng.place(self._device) if model.network.has_dropout() else {}
        return State(self._steps, self._rate, slots, masks)

    def sync(self) -> None:
        """Wait for the GPU; a CPU is done when a call returns."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _on_device(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._device) for tensor in tensors)
