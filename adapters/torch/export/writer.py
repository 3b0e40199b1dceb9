"""Collect the lines of an exported module and its state while the layers of a network are written."""

from __future__ import annotations

import itertools
import keyword
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.torch.layers import BuildOptions, build_layer
from harness.core.adapter import Weights
from harness.core.export.exporter import Scaling
from harness.core.network import Node, Shape

SINGLE_KINDS = ("output", "reconstruction")  # a network has one layer of these kinds, so it needs no number


@dataclass
class SourceWriter:
    """Lines of `__init__` (`fields`) and `forward` (`steps`), and the `state` of the module.

    `weights` are canonical; `options` have the dtype of the state; `blocks` counts residual blocks.
    """

    weights: Weights
    options: BuildOptions
    fields: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    blocks: int = 0
    _names: set[str] = field(default_factory=lambda: {"mean", "scale", "target_mean", "target_scale"})

    def add_step(self, line: str) -> None:
        """Add a line of `forward`."""
        self.steps.append(line)

    def add_module(self, name: str, constructor: str, state: dict[str, Tensor]) -> None:
        """Add a submodule with its state."""
        self.fields.append(f"self.{name} = {constructor}")
        self.state |= {f"{name}.{key}": tensor.contiguous().clone() for key, tensor in state.items()}

    def add_buffer(self, name: str, value: NDArray[np.float64], fill: str) -> None:
        """Add state that is not trained; `fill`: "zeros" or "ones", its value before it is loaded."""
        self.fields.append(f'self.register_buffer("{name}", torch.{fill}({numbers(value.shape)}))')
        self.state[name] = torch.tensor(value, dtype=self.options.dtype)

    def add_scaling(self, prefix: str, scaling: Scaling, comment: str) -> None:
        """Add the buffers `mean` and `scale`."""
        self.fields.append(f"# {comment}")
        self.add_buffer(f"{prefix}mean", scaling.mean, "zeros")
        self.add_buffer(f"{prefix}scale", scaling.scale, "ones")

    def apply_module(self, node: Node, channels_first: bool, var: str, constructor: str) -> None:
        """Add a submodule whose state is that of the adapter's module, and apply it to the variable `var`."""
        name = self.unique_name(node)
        self.add_module(name, constructor, self.native_state(node, channels_first))
        self.add_step(f"{var} = self.{name}({var})")

    def unique_name(self, node: Node) -> str:
        """Return the user's name of the layer, or its kind with a number; no name is returned twice."""
        kind = node.origin if node.origin in SINGLE_KINDS else node.layer.kind
        named = node.name.isidentifier() and not keyword.iskeyword(node.name)
        base = node.name if named else kind
        plain = named or kind in SINGLE_KINDS
        numbered = (f"{base}_{number}" for number in itertools.count(2 if plain else 1))
        candidates = itertools.chain((base,) if plain else (), numbered)
        name = next(n for n in candidates if n not in self._names and not hasattr(nn.Module, n))
        self._names.add(name)
        return name

    def native_state(self, node: Node, channels_first: bool) -> dict[str, Tensor]:
        """Return the layer's weights as the state of the adapter's own module."""
        module, bindings = build_layer(node, channels_first, self.options)
        with torch.no_grad():
            for binding in bindings:
                binding.write(torch.from_numpy(np.ascontiguousarray(self.weights[binding.name])))
        return module.state_dict()


def numbers(values: Shape) -> str:
    """Format numbers as arguments of a call."""
    return ", ".join(map(str, values))
