"""PyTorch: `nn.Module`s made from a network, `torch.optim`, and three ways to drive the steps.

`model` maps layers and weights, `optimizers` the update rules, `loops` the executions, `compiling` what
torch.compile gets to see; `program` puts them behind the harness's protocol.
"""

from adapters.torch.program import adapter

__all__ = ["adapter"]
