"""A layer tree that was read, and the network that it becomes when it meets its data."""

from __future__ import annotations

from dataclasses import dataclass

from harness.parse import ConfigError, Mistake
from harness.spec.kinds import Param, Shape, ShapeError
from harness.spec.layers import Concrete, Output
from harness.spec.tree import Placed, read_layers


@dataclass(frozen=True)
class Node:
    """A layer with everything known: what an adapter builds from. `params` are canonical."""

    path: str
    layer: Concrete
    in_shape: Shape
    out_shape: Shape
    params: tuple[tuple[str, Param], ...]
    flops: int

    def weight_names(self) -> dict[str, str]:
        """Canonical weight names by parameter name: `{"kernel": "1.0.0.kernel"}`."""
        return {name: f"{self.path}.{name}" for name, _ in self.params}


@dataclass(frozen=True)
class Network:
    """A spec that has met its data: hashable, so that compiled programs can be kept by it."""

    in_shape: Shape
    nodes: tuple[Node, ...]

    @property
    def out_shape(self) -> Shape:
        """The shape of one sample's output."""
        return self.nodes[-1].out_shape

    def params(self) -> dict[str, Param]:
        """Every parameter by its canonical weight name, in the order of the layers."""
        return {node.weight_names()[name]: p for node in self.nodes for name, p in node.params}

    def size(self) -> int:
        """How many numbers can be trained."""
        return sum(p.size for p in self.params().values())

    def flops(self) -> int:
        """Forward operations of one sample; a training step costs about three times as many a sample."""
        return sum(node.flops for node in self.nodes)


@dataclass(frozen=True)
class ModelSpec:
    """A layer tree, read and unrolled, that has not met its data yet."""

    layers: tuple[Placed, ...]

    @classmethod
    def parse(cls, tree: object, key: str = "model.layers") -> ModelSpec:
        """Read the list of layers that YAML gives; raises ConfigError with every mistake."""
        mistakes: list[Mistake] = []
        layers = tuple(read_layers(tree, "", key, mistakes))
        kinds = [placed.layer.kind for placed in layers]
        if not mistakes and kinds[-1:] != ["output"]:
            mistakes.append(Mistake(key, "the last layer must be of kind 'output'"))
        for placed in layers[:-1]:
            if isinstance(placed.layer, Output):
                mistakes.append(Mistake(placed.key, "'output' can only be the last layer"))
        if mistakes:
            raise ConfigError(mistakes)
        return cls(layers)

    def resolve(self, in_shape: Shape, outputs: int) -> Network:
        """Give every layer its shapes for samples of `in_shape` and a task with so many outputs.

        Raises ConfigError where a layer can't take what reaches it.
        """
        nodes: list[Node] = []
        shape = in_shape
        for placed in self.layers:
            layer = placed.layer.sized(outputs) if isinstance(placed.layer, Output) else placed.layer
            try:
                out = layer.out_shape(shape)
                if isinstance(placed.layer, Output) and len(shape) != 1:
                    raise ShapeError("takes one axis; put a 'flatten' before it")
            except ShapeError as error:
                problem = f"{placed.layer.kind} can't take a sample of shape {shape}: {error}"
                raise ConfigError([Mistake(placed.key, problem)]) from error
            params = tuple(layer.params(shape).items())
            nodes.append(Node(placed.path, layer, shape, out, params, layer.flops(shape)))
            shape = out
        return Network(in_shape, tuple(nodes))
