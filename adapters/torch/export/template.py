"""The text of an exported `model.py` around the lines of its layers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from harness.core.export.exporter import Export, describe_inputs, describe_outputs

HELPERS = {
    "last_valid": '''\
def last_valid(states: Tensor, lengths: Tensor) -> Tensor:
    """Return the state at each row's last valid step, [rows, units]."""
    index = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)
''',
    "reverse_valid": '''\
def reverse_valid(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the valid steps of each row; padding stays in place."""
    step = torch.arange(x.shape[1], device=x.device)
    index = torch.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    return x.gather(1, index[:, :, None].expand_as(x))
''',
}
"""Functions by name; a module contains those that it calls."""
MODULE = '''\
"""The network {model} of run {run_id}, trained on {data}.

    from model import load

    network = load()        # in evaluation mode, with the weights of model.safetensors next to this file
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
    """Load the trained network, in evaluation mode."""
    from safetensors.torch import load_file

    network = Network(){dtype}
    network.load_state_dict(load_file(weights))
    return network.eval()
'''


def render(export: Export, fields: Sequence[str], steps: Sequence[str]) -> str:
    """Return the module's source, with `fields` as lines of `__init__` and `steps` as lines of `forward`."""
    padded = export.network.input.lengths
    helpers = [text + "\n\n" for name, text in HELPERS.items() if any(name in step for step in steps)]
    notes = [*describe_inputs(export), describe_outputs(export)]
    source = MODULE.format(
        model=export.model,
        run_id=export.run_id,
        data=export.data,
        arguments="x, lengths" if padded else "x",
        parameters="x: Tensor, lengths: Tensor" if padded else "x: Tensor",
        notes="\n".join(textwrap.fill(note, 105, subsequent_indent="    ") for note in notes),
        helpers="".join(helpers),
        fields=textwrap.indent("\n".join(fields), " " * 8),
        steps=textwrap.indent("\n".join(steps), " " * 8),
        dtype=".double()" if export.precision == "float64" else "",
    )
    if not any("F." in step for step in steps):
        source = source.replace("from torch.nn import functional as F\n", "")
    return source
