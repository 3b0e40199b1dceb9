"""PyTorch adapter: `nn.Module`s built from a network, `torch.optim`, and four ways to run the steps.

`model` maps layers and weights, `optimizers` the update rules, `loops` and `cuda_graphs` the executions,
`compiled` the functions that torch.compile sees. `adapter` and `program` implement the harness's protocol,
and `export` writes trained networks.
"""

from adapters.torch.adapter import adapter

__all__ = ["adapter"]
