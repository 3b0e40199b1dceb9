"""Write a trained network as a plain PyTorch module or as ONNX.

`exporters` writes and loads the files, `source` writes the source of the module layer by layer, see `layers`.
"""

from adapters.torch.export.exporters import exporter

__all__ = ["exporter"]
