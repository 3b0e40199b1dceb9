"""What a network is, said once and without a framework: layers, shapes, parameters, operations.

`ModelSpec.parse` reads the layer tree of a `conf/model/*.yaml`; `ModelSpec.resolve` gives it the shape of the
data and the size of the task, and out comes the `Network` that adapters build from.
"""

from harness.spec.kinds import LayerKind, Param, Shape, ShapeError
from harness.spec.layers import Activation, Concrete, Dense, Dropout, Flatten, Layer, Output
from harness.spec.network import ModelSpec, Network, Node
from harness.spec.tree import Placed

__all__ = [
    "Activation",
    "Concrete",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "LayerKind",
    "ModelSpec",
    "Network",
    "Node",
    "Output",
    "Param",
    "Placed",
    "Shape",
    "ShapeError",
]
