"""The framework-neutral description of a network: layers, shapes, parameters, operations.

`ModelSpec.parse` reads the layer tree of a `conf/model/*.yaml`. `ModelSpec.resolve` combines it with the
shape of the data and the size of the task into the `Network` that adapters build from.
"""

from harness.core.network.attention import (
    BatchNorm,
    Embedding,
    LayerNorm,
    Positions,
    SelfAttention,
    sinusoids,
)
from harness.core.network.basic import Activation, Dense, Dropout, Flatten, Reshape
from harness.core.network.convolution import Conv1D, Conv2D, GlobalPool, Pool, Upsample
from harness.core.network.layer_base import Input, ShapeError
from harness.core.network.layers import Concrete, Layer, Output, Reconstruction, Residual, ToImage, ToSequence
from harness.core.network.network import AnyNode, ModelSpec, Network, Node, ResidualNode
from harness.core.network.parameters import Param, Shape
from harness.core.network.recurrent import GRU, LSTM, SimpleRNN
from harness.core.network.tree import LayerEntry

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "AnyNode",
    "BatchNorm",
    "Concrete",
    "Conv1D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalPool",
    "Input",
    "Layer",
    "LayerEntry",
    "LayerNorm",
    "ModelSpec",
    "Network",
    "Node",
    "Output",
    "Param",
    "Pool",
    "Positions",
    "Reconstruction",
    "Reshape",
    "Residual",
    "ResidualNode",
    "SelfAttention",
    "Shape",
    "ShapeError",
    "SimpleRNN",
    "ToImage",
    "ToSequence",
    "Upsample",
    "sinusoids",
]
