"""Training loops of other libraries on the networks of networks_torch.py, as in their tutorials.

Logging, checkpoints, progress bars, validation and summaries are switched off, because evenbench does none of
that inside its clock. An epoch then consists of a DataLoader, the steps, and the library's own work. A
callback at the end of an epoch waits for the next turn and measures the time.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.bench.networks_torch import network, parameters
from tests.bench.turns import Turns

BATCH, RATE = 32, 1e-3
MANY = 1_000_000  # epochs, more than there are turns
Rows = TensorDataset


def lightning(model: nn.Module, rows: Rows, turns: Turns) -> None:
    """A LightningModule and a Trainer."""
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model
            self.last = torch.tensor(float("nan"))

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            x, y = batch
            loss = nn.functional.cross_entropy(self.network(x), y)
            self.last = loss.detach()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=RATE)

    class Turn(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            _begin(turns)

        def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            _next(turns, float(module.last))

    trainer = L.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Turn()],
    )
    trainer.fit(Classifier(), DataLoader(rows, BATCH, shuffle=True))


def skorch(model: nn.Module, rows: Rows, turns: Turns) -> None:
    """A NeuralNetClassifier and its `fit`; its history cannot be switched off."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback

    class Turn(Callback):  # type: ignore[misc]
        def on_train_begin(self, net: Any, **_: Any) -> None:
            _begin(turns)

        def on_epoch_end(self, net: Any, **_: Any) -> None:
            _next(turns, net.history[-1, "train_loss"])

    classifier = NeuralNetClassifier(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=RATE,
        batch_size=BATCH,
        max_epochs=MANY,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[("turn", Turn())],
        callbacks__print_log=None,
    )
    x, y = rows.tensors
    classifier.fit(x.numpy(), y.numpy())


def ignite(model: nn.Module, rows: Rows, turns: Turns) -> None:
    """`create_supervised_trainer`, with only a handler that measures the time."""
    from ignite.engine import Engine, Events, create_supervised_trainer

    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    trainer.add_event_handler(Events.STARTED, lambda: _begin(turns))

    def ended(engine: Engine) -> None:
        _next(turns, float(engine.state.output))

    trainer.add_event_handler(Events.EPOCH_COMPLETED, ended)
    trainer.run(DataLoader(rows, BATCH, shuffle=True), max_epochs=MANY)


def _begin(turns: Turns) -> None:
    turns.wait()
    turns.start()


def _next(turns: Turns, loss: float) -> None:
    """End a turn and wait for the next one; `loss` is that of the epoch or of its last batch."""
    turns.stop()
    turns.done(loss)
    _begin(turns)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # advice on loader workers and loggers
    name, rival, path = sys.argv[1:]
    torch.set_num_threads(1)
    data = np.load(path)
    count = len(data["x.train"]) // BATCH * BATCH
    x = torch.tensor(data["x.train"][:count], dtype=torch.float32)
    y = torch.tensor(data["y.train"][:count])
    model, turns = network(name, tuple(x.shape[1:])), Turns()
    turns.parameters = parameters(model)
    globals()[rival](model, TensorDataset(x, y), turns)
