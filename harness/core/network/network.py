"""A parsed layer tree (`ModelSpec`), and the `Network` that it resolves to for given data and task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from harness.core.network.attention import Embedding
from harness.core.network.basic import Activation, Dropout, Flatten
from harness.core.network.layer_base import Input, ShapeError
from harness.core.network.layers import Concrete, Output, Reconstruction, Residual, concrete
from harness.core.network.parameters import Param, Shape
from harness.core.network.tree import LayerEntry, read_layers
from harness.core.validation import ConfigError, Mistake, nearest

LAYERS, FREEZE = "model.layers", "init.freeze"  # the configuration keys that mistakes name


@dataclass(frozen=True)
class Node:
    """A resolved layer, from which an adapter builds. `params` are canonical.

    `masked`: its input has padded steps, given by the run's `lengths`. `origin`: the kind of the entry in the
    layer tree. `name`: the user's name for it. `frozen`: its weights are not trained, see
    `harness.core.adapter.Plan`.
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
        """Return canonical weight names by parameter name: `{"kernel": "1.0.0.kernel"}`."""
        return {name: f"{self.path}.{name}" for name, _ in self.params}

    @property
    def is_identity(self) -> bool:
        """Whether it returns its input: dropout at rate 0, flattening a flat input.

        Adapters leave such layers out, since calling a layer costs Keras on torch some 50 µs a step.
        """
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
        """Yield this node."""
        yield self


@dataclass(frozen=True)
class ResidualNode:
    """A resolved residual block: shortcut(x) + body(x); an empty shortcut is x itself."""

    path: str
    layer: Residual
    body: tuple[AnyNode, ...]
    shortcut: tuple[AnyNode, ...]
    in_shape: Shape
    out_shape: Shape
    name: str = ""

    def nodes(self) -> Iterator[Node]:
        """Yield all layers inside, body first."""
        for child in (*self.body, *self.shortcut):
            yield from child.nodes()


AnyNode = Node | ResidualNode


@dataclass(frozen=True)
class Network:
    """A resolved spec. It is hashable, so that it can be part of a program cache's key."""

    input: Input
    nodes: tuple[AnyNode, ...]

    @property
    def out_shape(self) -> Shape:
        """The shape of one sample's output."""
        return self.nodes[-1].out_shape

    def layers(self) -> Iterator[Node]:
        """Yield all layers in order, including those inside residual blocks."""
        for node in self.nodes:
            yield from node.nodes()

    def params(self) -> dict[str, Param]:
        """Return all parameters by canonical weight name, in the order of the layers; state included."""
        return {node.weight_names()[name]: p for node in self.layers() for name, p in node.params}

    def trained_weights(self) -> list[str]:
        """Return the names of the weights that an optimizer updates: no state, none of frozen layers."""
        nodes = (node for node in self.layers() if not node.frozen)
        return [node.weight_names()[name] for node in nodes for name, p in node.params if p.trainable]

    def has_dropout(self) -> bool:
        """Return whether any layer has a dropout rate above 0."""
        return any(isinstance(node.layer, Dropout) and node.layer.rate > 0 for node in self.layers())

    def size(self) -> int:
        """Return the number of trainable values, including those of frozen layers."""
        return sum(p.size for p in self.params().values() if p.trainable)

    def flops(self) -> int:
        """Return the forward operations of one sample; a training step takes about three times as many."""
        return sum(node.flops for node in self.layers())


@dataclass(frozen=True)
class ModelSpec:
    """A parsed and unrolled layer tree, independent of any data."""

    layers: tuple[LayerEntry, ...]

    @property
    def reconstructs(self) -> bool:
        """Whether it is an autoencoder, whose task is to reconstruct its input."""
        return isinstance(self.layers[-1].layer, Reconstruction)

    @classmethod
    def parse(cls, tree: object) -> ModelSpec:
        """Parse a list of layers as read from YAML; raises ConfigError with all mistakes."""
        mistakes: list[Mistake] = []
        layers = tuple(read_layers(tree, "", LAYERS, mistakes))
        if not mistakes and not (layers and isinstance(layers[-1].layer, Output | Reconstruction)):
            mistakes.append(Mistake(LAYERS, "the last layer must be of kind 'output' or 'reconstruction'"))
        for entry in _all(layers[:-1]):
            if isinstance(entry.layer, Output | Reconstruction):
                mistakes.append(Mistake(entry.key, f"{entry.layer.kind!r} can only be the last layer"))
        if mistakes:
            raise ConfigError(mistakes)
        return cls(layers)

    def paths_of(self, name: str) -> frozenset[str]:
        """Return the paths of the layers with a name or path, and of all inside a block or `repeat` with it.

        `1` includes `1.0.0`, but not `10`.
        """
        return frozenset(_paths_of(self.layers, name, False))

    def freeze(self, names: Iterable[str]) -> ModelSpec:
        """Return the tree with the named layers frozen; raises ConfigError for names that match no layer."""
        mistakes: list[Mistake] = []
        frozen: set[str] = set()
        valid_names = list(dict.fromkeys(_names(self.layers)))
        for name in names:
            paths = self.paths_of(name)
            if not paths:
                problem, allowed = f"{name!r} is not a layer of the model", ", ".join(valid_names)
                mistakes.append(Mistake(FREEZE, problem, allowed, nearest(name, valid_names)))
            frozen |= paths
        if mistakes:
            raise ConfigError(mistakes)
        return ModelSpec(_frozen(self.layers, frozen))

    def resolve(self, sample: Input, outputs: int) -> Network:
        """Compute the shapes of all layers for the samples and a task with `outputs` outputs.

        Raises ConfigError if a layer does not accept its input.
        """
        inputs = _Activations(sample.shape, sample.lengths, sample.vocabulary > 0)
        return Network(sample, _Resolver(sample, outputs).all(self.layers, inputs)[0])


@dataclass(frozen=True)
class _Activations:
    """The input of a layer: its shape, whether some steps are padding, whether its values are token ids."""

    shape: Shape
    masked: bool
    tokens: bool


@dataclass(frozen=True)
class _Resolver:
    sample: Input
    outputs: int

    def all(
        self, entries: tuple[LayerEntry, ...], inputs: _Activations
    ) -> tuple[tuple[AnyNode, ...], _Activations]:
        nodes: list[AnyNode] = []
        for entry in entries:
            try:
                resolved, outputs = self._one(entry, inputs)
            except ShapeError as error:
                problem = f"{entry.layer.kind} can't take a sample of shape {inputs.shape}: {error}"
                raise ConfigError([Mistake(entry.key, problem)]) from error
            nodes += resolved
            inputs = outputs
        return tuple(nodes), inputs

    def _one(self, entry: LayerEntry, inputs: _Activations) -> tuple[list[AnyNode], _Activations]:
        if isinstance(entry.layer, Residual):
            block, outputs = self._residual(entry, entry.layer, inputs)
            return [block], outputs
        nodes: list[AnyNode] = []
        for suffix, layer in concrete(entry.layer, inputs.shape, self.sample, self.outputs):
            node, inputs = _node(entry, suffix, layer, inputs)
            nodes.append(node)
        return nodes, inputs

    def _residual(
        self, entry: LayerEntry, layer: Residual, inputs: _Activations
    ) -> tuple[ResidualNode, _Activations]:
        body, body_out = self.all(entry.body, inputs)
        shortcut, shortcut_out = self.all(entry.shortcut, inputs)
        if body_out != shortcut_out:
            shapes = f"its body gives {body_out.shape}, its shortcut {shortcut_out.shape}"
            raise ShapeError(f"{shapes}; they are added")
        node = ResidualNode(entry.path, layer, body, shortcut, inputs.shape, body_out.shape, entry.name)
        return node, body_out


def _node(entry: LayerEntry, suffix: str, layer: Concrete, inputs: _Activations) -> tuple[Node, _Activations]:
    if inputs.tokens and not isinstance(layer, Embedding):
        raise ShapeError("the data are token ids; an 'embedding' or 'to_sequence' comes first")
    if inputs.masked and layer.time_axis == "refused":
        raise ShapeError("the data are sequences of unequal length, whose padding it would mix in")
    out = layer.out_shape(inputs.shape)
    params = tuple(layer.params(inputs.shape).items())
    path, kind, flops = entry.path + suffix, entry.layer.kind, layer.flops(inputs.shape)
    name, frozen = entry.name, entry.frozen
    node = Node(path, layer, inputs.shape, out, params, flops, inputs.masked, kind, name, frozen)
    # the axis of steps is still there as long as a second axis, of features, follows it
    return node, _Activations(out, inputs.masked and layer.time_axis == "kept" and len(out) == 2, False)


def _paths_of(entries: tuple[LayerEntry, ...], name: str, inside: bool) -> Iterator[str]:
    for entry in entries:
        matches = inside or entry.name == name != "" or f"{entry.path}.".startswith(f"{name}.")
        if isinstance(entry.layer, Residual):
            yield from _paths_of((*entry.body, *entry.shortcut), name, matches)
        elif matches:
            yield entry.path


def _names(layers: tuple[LayerEntry, ...]) -> Iterator[str]:
    """Yield all valid names of layers: names first, then paths, including those of a `repeat` and its
    copies."""
    entries = list(_all(layers))
    yield from (entry.name for entry in entries if entry.name)
    for entry in entries:
        parts = entry.path.split(".")
        yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _frozen(entries: tuple[LayerEntry, ...], paths: set[str]) -> tuple[LayerEntry, ...]:
    return tuple(
        replace(
            entry,
            frozen=entry.path in paths,
            body=_frozen(entry.body, paths),
            shortcut=_frozen(entry.shortcut, paths),
        )
        for entry in entries
    )


def _all(entries: tuple[LayerEntry, ...]) -> Iterator[LayerEntry]:
    for entry in entries:
        yield entry
        yield from _all((*entry.body, *entry.shortcut))
