"""A layer tree that was read, and the network that it becomes when it meets its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from harness.core.network.attention import Embedding
from harness.core.network.basic import Activation, Dropout, Flatten
from harness.core.network.layer_base import Input, Param, Shape, ShapeError
from harness.core.network.layers import Concrete, Output, Reconstruction, Residual, concrete
from harness.core.network.tree import Placed, read_layers
from harness.core.validation import ConfigError, Mistake, nearest


@dataclass(frozen=True)
class Node:
    """A layer with everything known: what an adapter builds from. `params` are canonical.

    `masked` says that its input has steps of padding, which the run's `lengths` tell. `origin` is the kind
    that the tree has in this place, `name` what the user called it. `frozen`: its weights are not trained,
    see `harness.core.adapter.Plan`.
    """

    path: str
    layer: Concrete
    in_shape: Shape
    out_shape: Shape
    params: tuple[tuple[str, Param], ...]
    flops: int
    masked: bool = False
    origin: str = ""
    name: str = ""
    frozen: bool = False

    def weight_names(self) -> dict[str, str]:
        """Canonical weight names by parameter name: `{"kernel": "1.0.0.kernel"}`."""
        return {name: f"{self.path}.{name}" for name, _ in self.params}

    @property
    def does_nothing(self) -> bool:
        """Whether it gives back what it gets: dropout of nothing, flattening what is flat. Adapters leave it
        out, since calling a layer costs Keras on torch some 50 µs a step."""
        match self.layer:
            case Dropout(rate=rate):
                return rate == 0.0
            case Flatten():
                return len(self.in_shape) == 1 and not self.masked
            case Activation(function=function):
                return function == "linear"
            case _:
                return False

    def nodes(self) -> Iterator[Node]:
        """Itself."""
        yield self


@dataclass(frozen=True)
class ResidualNode:
    """A residual block with everything known: shortcut(x) + body(x), an empty shortcut being x itself."""

    path: str
    layer: Residual
    body: tuple[AnyNode, ...]
    shortcut: tuple[AnyNode, ...]
    in_shape: Shape
    out_shape: Shape
    name: str = ""

    def nodes(self) -> Iterator[Node]:
        """All layers inside, body first."""
        for child in (*self.body, *self.shortcut):
            yield from child.nodes()


AnyNode = Node | ResidualNode


@dataclass(frozen=True)
class Network:
    """A spec that has met its data: hashable, so that compiled programs can be kept by it."""

    input: Input
    nodes: tuple[AnyNode, ...]

    @property
    def out_shape(self) -> Shape:
        """The shape of one sample's output."""
        return self.nodes[-1].out_shape

    def layers(self) -> Iterator[Node]:
        """Every layer in order, those inside of residual blocks too."""
        for node in self.nodes:
            yield from node.nodes()

    def params(self) -> dict[str, Param]:
        """Every parameter by its canonical weight name, in the order of the layers; state included."""
        return {node.weight_names()[name]: p for node in self.layers() for name, p in node.params}

    def trained(self) -> list[str]:
        """The names of the weights that an optimizer updates: those of frozen layers, and state, are not."""
        nodes = (node for node in self.layers() if not node.frozen)
        return [node.weight_names()[name] for node in nodes for name, p in node.params if p.trainable]

    def has_dropout(self) -> bool:
        """Whether any layer drops anything."""
        return any(isinstance(node.layer, Dropout) and node.layer.rate > 0 for node in self.layers())

    def size(self) -> int:
        """How many numbers can be trained, those of frozen layers included."""
        return sum(p.size for p in self.params().values() if p.trainable)

    def flops(self) -> int:
        """Forward operations of one sample; a training step costs about three times as many a sample."""
        return sum(node.flops for node in self.layers())


@dataclass(frozen=True)
class ModelSpec:
    """A layer tree, read and unrolled, that has not met its data yet."""

    layers: tuple[Placed, ...]

    @property
    def reconstructs(self) -> bool:
        """Whether the task is to give back the input: whether it is an autoencoder."""
        return isinstance(self.layers[-1].layer, Reconstruction)

    @classmethod
    def parse(cls, tree: object, key: str = "model.layers") -> ModelSpec:
        """Read the list of layers that YAML gives; raises ConfigError with every mistake."""
        mistakes: list[Mistake] = []
        layers = tuple(read_layers(tree, "", key, mistakes))
        if not mistakes and not (layers and isinstance(layers[-1].layer, Output | Reconstruction)):
            mistakes.append(Mistake(key, "the last layer must be of kind 'output' or 'reconstruction'"))
        for placed in _all(layers[:-1]):
            if isinstance(placed.layer, Output | Reconstruction):
                mistakes.append(Mistake(placed.key, f"{placed.layer.kind!r} can only be the last layer"))
        if mistakes:
            raise ConfigError(mistakes)
        return cls(layers)

    def meant(self, name: str) -> frozenset[str]:
        """The paths of the layers that a name or a path means: those that have it, and all inside of a block
        or a `repeat` that has it (`1` means `1.0.0` too, and not `10`)."""
        return frozenset(_meant(self.layers, name, False))

    def freeze(self, names: Iterable[str], key: str = "init.freeze") -> ModelSpec:
        """The tree with the layers frozen that the names mean; raises ConfigError for names of none."""
        mistakes: list[Mistake] = []
        frozen: set[str] = set()
        known = list(dict.fromkeys(_names(self.layers)))
        for name in names:
            found = self.meant(name)
            if not found:
                problem, allowed = f"{name!r} is no layer of the model", ", ".join(known)
                mistakes.append(Mistake(key, problem, allowed, nearest(name, known)))
            frozen |= found
        if mistakes:
            raise ConfigError(mistakes)
        return ModelSpec(_frozen(self.layers, frozen))

    def resolve(self, given: Input, outputs: int) -> Network:
        """Give every layer its shapes for such samples and a task with so many outputs.

        Raises ConfigError where a layer can't take what reaches it.
        """
        flow = _Flow(given.shape, given.lengths, given.vocabulary > 0)
        return Network(given, _Resolver(given, outputs).all(self.layers, flow)[0])


@dataclass(frozen=True)
class _Flow:
    """What reaches a layer: the shape, whether its steps are partly padding, whether they are token ids."""

    shape: Shape
    masked: bool
    tokens: bool


@dataclass(frozen=True)
class _Resolver:
    given: Input
    outputs: int

    def all(self, layers: tuple[Placed, ...], flow: _Flow) -> tuple[tuple[AnyNode, ...], _Flow]:
        nodes: list[AnyNode] = []
        for placed in layers:
            try:
                found, flow = self._one(placed, flow)
            except ShapeError as error:
                problem = f"{placed.layer.kind} can't take a sample of shape {flow.shape}: {error}"
                raise ConfigError([Mistake(placed.key, problem)]) from error
            nodes += found
        return tuple(nodes), flow

    def _one(self, placed: Placed, flow: _Flow) -> tuple[list[AnyNode], _Flow]:
        if isinstance(placed.layer, Residual):
            block, flow = self._residual(placed, placed.layer, flow)
            return [block], flow
        nodes: list[AnyNode] = []
        for suffix, layer in concrete(placed.layer, flow.shape, self.given, self.outputs):
            node, flow = _node(placed, suffix, layer, flow)
            nodes.append(node)
        return nodes, flow

    def _residual(self, placed: Placed, layer: Residual, flow: _Flow) -> tuple[ResidualNode, _Flow]:
        body, out = self.all(placed.body, flow)
        shortcut, beside = self.all(placed.shortcut, flow)
        if out != beside:
            raise ShapeError(f"its body gives {out.shape}, its shortcut {beside.shape}; they are added")
        return ResidualNode(placed.path, layer, body, shortcut, flow.shape, out.shape, placed.name), out


def _node(placed: Placed, suffix: str, layer: Concrete, flow: _Flow) -> tuple[Node, _Flow]:
    if flow.tokens and not isinstance(layer, Embedding):
        raise ShapeError("the data are token ids; an 'embedding' or 'to_sequence' comes first")
    if flow.masked and layer.time_axis == "refused":
        raise ShapeError("the data are sequences of unequal length, whose padding it would mix in")
    out = layer.out_shape(flow.shape)
    params = tuple(layer.params(flow.shape).items())
    path, kind, flops = placed.path + suffix, placed.layer.kind, layer.flops(flow.shape)
    title, frozen = placed.name, placed.frozen
    node = Node(path, layer, flow.shape, out, params, flops, flow.masked, kind, title, frozen)
    # an axis of steps is left as long as there is a second one, of features
    return node, _Flow(out, flow.masked and layer.time_axis == "kept" and len(out) == 2, False)


def _meant(layers: tuple[Placed, ...], name: str, inside: bool) -> Iterator[str]:
    for placed in layers:
        found = inside or placed.name == name != "" or f"{placed.path}.".startswith(f"{name}.")
        if isinstance(placed.layer, Residual):
            yield from _meant((*placed.body, *placed.shortcut), name, found)
        elif found:
            yield placed.path


def _names(layers: tuple[Placed, ...]) -> Iterator[str]:
    """What a layer can be called by: names first, then paths, those of a `repeat` and its copies too."""
    every = list(_all(layers))
    yield from (placed.name for placed in every if placed.name)
    for placed in every:
        parts = placed.path.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _frozen(layers: tuple[Placed, ...], paths: set[str]) -> tuple[Placed, ...]:
    return tuple(
        replace(
            placed,
            frozen=placed.path in paths,
            body=_frozen(placed.body, paths),
            shortcut=_frozen(placed.shortcut, paths),
        )
        for placed in layers
    )


def _all(layers: tuple[Placed, ...]) -> Iterator[Placed]:
    for placed in layers:
        yield placed
        yield from _all((*placed.body, *placed.shortcut))
