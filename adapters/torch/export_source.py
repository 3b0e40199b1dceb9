"""From a network to the source of a module in plain PyTorch, as a person would write it, and its state.

The walk is that of `model`: samples are in the canonical order (height, width, channels), and a permutation
stands where a layer wants torch's. What differs is that everything is torch's own: nn.MultiheadAttention with
a key bias that is zero, nn.BatchNorm2d, nn.LSTM, one a direction where rows are padded.
"""

from __future__ import annotations

import itertools
import keyword
import re
import textwrap
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.torch import layers
from adapters.torch.layers import BuildOptions
from harness.core.adapter import Weights
from harness.core.export.exporter import Export, Scaling, describe_inputs, describe_outputs
from harness.core.network import (
    GRU,
    LSTM,
    Activation,
    AnyNode,
    BatchNorm,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalPool,
    LayerNorm,
    Node,
    Pool,
    Positions,
    Reshape,
    ResidualNode,
    SelfAttention,
    Shape,
    SimpleRNN,
    Upsample,
    sinusoids,
)

FINAL = ("output", "reconstruction")  # layers that a network has one of
HELPERS = {
    "last_valid": '''\
def last_valid(states: Tensor, lengths: Tensor) -> Tensor:
    """The state of each row's last valid step, [rows, units]."""
    index = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)
''',
    "reverse_valid": '''\
def reverse_valid(x: Tensor, lengths: Tensor) -> Tensor:
    """The valid steps of each row in reverse order; the padding stays where it is."""
    step = torch.arange(x.shape[1], device=x.device)
    index = torch.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    return x.gather(1, index[:, :, None].expand_as(x))
''',
}
MODULE = '''\
"""The network {model} of run {run_id}, trained on {data}.

    from model import load

    network = load()        # in evaluation mode, with the weights of model.safetensors beside this file
    with torch.inference_mode():
        outputs = network({arguments})

{notes}
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


{helpers}class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
{fields}

    def forward(self, {parameters}) -> Tensor:
{steps}
        return x


def load(weights: str | Path = Path(__file__).with_name("model.safetensors")) -> Network:
    """The trained network in evaluation mode."""
    from safetensors.torch import load_file

    network = Network(){dtype}
    network.load_state_dict(load_file(weights))
    return network.eval()
'''


def write(export: Export) -> tuple[str, dict[str, Tensor]]:
    """The module's source and the state that belongs to it."""
    writer = _Writer(export.weights, BuildOptions(dtype(export), torch.device("cpu"), unrolled=False))
    if export.inputs is not None:
        writer.scaling("", export.inputs, "of the training part, to standardise x")
        writer.say("x = (x - self.mean) / self.scale")
    writer.chain(export.network.nodes, False, "x")
    if export.outputs is not None:
        writer.scaling("target_", export.outputs, "from training units to those of the data")
        writer.say("x = x * self.target_scale + self.target_mean")
    padded = export.network.input.lengths
    if any(re.search(r"\bvalid\b", line) for line in writer.steps):
        writer.steps.insert(0, "valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]")
    helpers = [text + "\n\n" for name, text in HELPERS.items() if any(name in s for s in writer.steps)]
    notes = [*describe_inputs(export), describe_outputs(export)]
    source = MODULE.format(
        model=export.model,
        run_id=export.run_id,
        data=export.data,
        arguments="x, lengths" if padded else "x",
        parameters="x: Tensor, lengths: Tensor" if padded else "x: Tensor",
        notes="\n".join(textwrap.fill(note, 105, subsequent_indent="    ") for note in notes),
        helpers="".join(helpers),
        fields=textwrap.indent("\n".join(writer.fields), " " * 8),
        steps=textwrap.indent("\n".join(writer.steps), " " * 8),
        dtype=".double()" if export.precision == "float64" else "",
    )
    if not any("F." in line for line in writer.steps):
        source = source.replace("from torch.nn import functional as F\n", "")
    return source, writer.state


def dtype(export: Export) -> torch.dtype:
    """Of the module's weights."""
    return {"float32": torch.float32, "float64": torch.float64}[export.precision]


@dataclass
class _Writer:
    """Lines of `__init__` and of `forward`, and the state, as the walk goes on.

    `first` says, as in `model`, whether the channels are the first axis of a sample.
    """

    weights: Weights
    setting: BuildOptions
    fields: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    _names: set[str] = field(default_factory=lambda: {"mean", "scale", "target_mean", "target_scale"})
    _blocks: int = 0

    def say(self, line: str) -> None:
        """One more line of `forward`."""
        self.steps.append(line)

    def scaling(self, prefix: str, scaling: Scaling, comment: str) -> None:
        """The buffers `mean` and `scale`."""
        self.fields.append(f"# {comment}")
        self._buffer(f"{prefix}mean", scaling.mean, "zeros")
        self._buffer(f"{prefix}scale", scaling.scale, "ones")

    def chain(self, nodes: tuple[AnyNode, ...], first: bool, v: str) -> bool:
        """Layers in a row, applied to the variable `v`."""
        for node in nodes:
            if isinstance(node, ResidualNode):
                first = self._block(node, first, v)
                continue
            if node.is_identity:
                continue
            wanted = layers.wants_channels_first(node)
            if wanted is not None and wanted != first:
                self._reorder(len(node.in_shape), wanted, v)
                first = wanted
            self._layer(node, first, v)
            first = first and len(node.out_shape) > 1
        return first

    def _block(self, node: ResidualNode, first: bool, v: str) -> bool:
        self._blocks += 1
        skip = f"shortcut_{self._blocks}"
        self.say(f"{skip} = {v}")
        body_first = self.chain(node.body, first, v)
        if self.chain(node.shortcut, first, skip) != body_first:
            self._reorder(len(node.out_shape), body_first, skip)
        self.say(f"{v} = {skip} + {v}")
        return body_first

    def _reorder(self, rank: int, first: bool, v: str) -> None:
        if rank > 1:
            axes = (0, rank, *range(1, rank)) if first else (0, *range(2, rank + 1), 1)
            self.say(f"{v} = {v}.permute({_list(axes)})  # channels {'first' if first else 'last'}")

    def _layer(self, node: Node, first: bool, v: str) -> None:
        layer, shape = node.layer, node.in_shape
        places = tuple(range(2, len(shape) + 1)) if first else tuple(range(1, len(shape)))
        match layer:
            case Dense():
                bias = "" if layer.use_bias else ", bias=False"
                self._apply(node, first, v, f"nn.Linear({shape[-1]}, {layer.units}{bias})")
            case Activation():
                self.say(f"{v} = {_activation(layer, v)}")
            case Dropout(rate=rate):
                self._apply(node, first, v, f"nn.Dropout({rate})")
            case Flatten():
                if node.masked:
                    self.say(f"{v} = {v}.masked_fill(~valid{_new_axes(len(shape) - 1)}, 0.0)")
                if len(shape) > 1:
                    self.say(f"{v} = {v}.flatten(1)")
            case Reshape():
                self.say(f"{v} = {v}.reshape(-1, {_list(node.out_shape)})")
            case Conv1D() | Conv2D():
                self._convolution(node, layer, first, v)
            case Pool(mode=mode, size=size):
                name = {"max": "max_pool", "average": "avg_pool"}[mode]
                self.say(f"{v} = F.{name}{len(shape) - 1}d({v}, {size})")
            case GlobalPool(mode=mode):
                self._global_pool(mode, node.masked, places, v)
            case Upsample(size=size):
                for axis in places:
                    self.say(f"{v} = {v}.repeat_interleave({size}, {axis})")
            case SimpleRNN() | LSTM() | GRU():
                self._recurrent(node, layer, v)
            case Embedding():
                self._apply(node, first, v, f"nn.Embedding({layer.vocabulary}, {layer.units})")
            case Positions():
                self._positions(node, layer, v)
            case SelfAttention():
                self._attention(node, layer, v)
            case LayerNorm(epsilon=epsilon):
                self._apply(node, first, v, f"nn.LayerNorm({shape[-1]}, eps={epsilon})")
            case BatchNorm():
                self._batch_norm(node, layer, v)
            case _:
                assert_never(layer)

    def _buffer(self, name: str, value: NDArray[np.float64], fill: str) -> None:
        """State that is not trained."""
        self.fields.append(f'self.register_buffer("{name}", torch.{fill}({_list(value.shape)}))')
        self.state[name] = torch.tensor(value, dtype=self.setting.dtype)

    def _name(self, node: Node) -> str:
        """What the user called the layer, or its kind with a number; no two are the same."""
        kind = node.origin if node.origin in FINAL else node.layer.kind
        named = node.name.isidentifier() and not keyword.iskeyword(node.name)
        word = node.name if named else kind
        alone = named or kind in FINAL
        numbers = (f"{word}_{number}" for number in itertools.count(2 if alone else 1))
        names = itertools.chain((word,) if alone else (), numbers)
        name = next(n for n in names if n not in self._names and not hasattr(nn.Module, n))
        self._names.add(name)
        return name

    def _native(self, node: Node, first: bool) -> dict[str, Tensor]:
        """The layer's weights as the adapter's own module has them."""
        module, bindings = layers.build_layer(node, first, self.setting)
        with torch.no_grad():
            for place in bindings:
                place.write(torch.from_numpy(np.ascontiguousarray(self.weights[place.name])))
        return module.state_dict()

    def _hold(self, name: str, constructor: str, state: dict[str, Tensor]) -> None:
        self.fields.append(f"self.{name} = {constructor}")
        self.state |= {f"{name}.{key}": tensor.contiguous().clone() for key, tensor in state.items()}

    def _apply(self, node: Node, first: bool, v: str, constructor: str) -> None:
        name = self._name(node)
        self._hold(name, constructor, self._native(node, first))
        self.say(f"{v} = self.{name}({v})")

    def _convolution(self, node: Node, layer: Conv1D | Conv2D, first: bool, v: str) -> None:
        rank, size = len(node.in_shape) - 1, layer.kernel_size
        options = f", stride={layer.strides}" if layer.strides > 1 else ""
        if layer.padding == "same" and size > 1:
            options += f", padding={size // 2}" if size % 2 else ', padding="same"'
        options += "" if layer.use_bias else ", bias=False"
        if layer.padding == "causal" and size > 1:
            self.say(f"{v} = F.pad({v}, ({size - 1}, 0))  # in front, so that no step sees a later one")
        self._apply(node, first, v, f"nn.Conv{rank}d({node.in_shape[-1]}, {layer.filters}, {size}{options})")

    def _global_pool(self, mode: str, masked: bool, places: tuple[int, ...], v: str) -> None:
        axes = str(places[0]) if len(places) == 1 else f"({_list(places)})"
        match mode, masked:
            case "average", False:
                self.say(f"{v} = {v}.mean({axes})")
            case "average", True:
                self.say(f"{v} = {v}.masked_fill(~valid[:, :, None], 0.0).sum(1) / lengths[:, None]")
            case _, False:
                self.say(f"{v} = {v}.amax({axes})")
            case _:
                self.say(f'{v} = {v}.masked_fill(~valid[:, :, None], float("-inf")).amax(1)')

    def _recurrent(self, node: Node, layer: SimpleRNN | LSTM | GRU, v: str) -> None:
        name, sequence = self._name(node), layer.returns == "sequence"
        paired = layer.bidirectional and not node.masked
        kind = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}[layer.kind]
        options = "batch_first=True" + (", bidirectional=True" if paired else "")
        constructor = f"nn.{kind}({node.in_shape[-1]}, {layer.units}, {options})"
        runs: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self._native(node, False).items():
            run, _, weight = key.partition(".")
            runs.setdefault(run, {})[weight] = tensor
        self._hold(name, constructor, runs["forward_cells"])
        if paired and not sequence:
            units = layer.units
            self.say(f"{v} = self.{name}({v})[0]")
            self.say(f"{v} = torch.cat(({v}[:, -1, :{units}], {v}[:, 0, {units}:]), -1)")
        elif layer.bidirectional and node.masked:
            self._hold(f"{name}_back", constructor, runs["backward_cells"])
            self.say(f"back = self.{name}_back(reverse_valid({v}, lengths))[0]")
            self.say(f"{v} = self.{name}({v})[0]")
            both = f"{v}, reverse_valid(back, lengths)"
            ends = f"last_valid({v}, lengths), last_valid(back, lengths)"
            self.say(f"{v} = torch.cat(({both if sequence else ends}), -1)")
        elif sequence:
            self.say(f"{v} = self.{name}({v})[0]")
        else:
            last = (
                f"last_valid(self.{name}({v})[0], lengths)" if node.masked else f"self.{name}({v})[0][:, -1]"
            )
            self.say(f"{v} = {last}")

    def _positions(self, node: Node, layer: Positions, v: str) -> None:
        name = self._name(node)
        if layer.encoding == "sinusoidal":
            self._buffer(name, np.array(sinusoids(node.in_shape)), "zeros")
        else:
            table = self._native(node, False)["table"]
            self.fields.append(f"self.{name} = nn.Parameter(torch.zeros({_list(node.in_shape)}))")
            self.state[name] = table.clone()
        self.say(f"{v} = {v} + self.{name}")

    def _attention(self, node: Node, layer: SelfAttention, v: str) -> None:
        name, width = self._name(node), node.in_shape[-1]
        native = self._native(node, False)
        key, query, value = native["projection"].chunk(3)
        query_bias, value_bias = native["bias"].chunk(2)
        state = {
            "in_proj_weight": torch.cat((query, key, value)),
            "in_proj_bias": torch.cat((query_bias, torch.zeros_like(query_bias), value_bias)),
            "out_proj.weight": native["output.weight"],
            "out_proj.bias": native["output.bias"],
        }
        self._hold(name, f"nn.MultiheadAttention({width}, {layer.heads}, batch_first=True)", state)
        options = "need_weights=False"
        if layer.causal:
            # the padding lies behind every valid step, so it is hidden too
            steps = node.in_shape[0]
            self.say(f"later = torch.ones({steps}, {steps}, dtype=torch.bool, device={v}.device).triu(1)")
            options += ", attn_mask=later"
        elif node.masked:
            options += ", key_padding_mask=~valid"
        self.say(f"{v} = self.{name}({v}, {v}, {v}, {options})[0]")

    def _batch_norm(self, node: Node, layer: BatchNorm, v: str) -> None:
        name, rank = self._name(node), max(1, len(node.in_shape) - 1)
        native = self._native(node, len(node.in_shape) > 1)
        state = {
            "weight": native["gamma"],
            "bias": native["beta"],
            "running_mean": native["moving_mean"],
            "running_var": native["moving_variance"],
            "num_batches_tracked": torch.tensor(0),
        }
        momentum = round(1.0 - layer.momentum, 12)
        channels = node.in_shape[-1]
        self._hold(name, f"nn.BatchNorm{rank}d({channels}, eps={layer.epsilon}, momentum={momentum})", state)
        self.say(f"{v} = self.{name}({v})")


def _activation(layer: Activation, v: str) -> str:
    match layer.function:
        case "linear":
            return v
        case "relu" | "gelu" | "silu":
            return f"F.{layer.function}({v})"
        case "leaky_relu":
            return f"F.leaky_relu({v}, {layer.slope})"
        case "sigmoid" | "tanh":
            return f"torch.{layer.function}({v})"
        case "softmax":
            return f"F.softmax({v}, dim=-1)"
        case _:
            assert_never(layer.function)


def _list(numbers: Shape) -> str:
    return ", ".join(map(str, numbers))


def _new_axes(count: int) -> str:
    return "[:, :" + ", None" * count + "]"
