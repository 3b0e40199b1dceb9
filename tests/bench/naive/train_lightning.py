"""The baseline sweep: Hydra, Lightning and its MLflow logger, like the widely used template.

    python -m tests.bench.naive.train_lightning -m seed=0,1,2,3

A data module, a module with torchmetrics, a trainer whose logger and checkpoints come from the configuration
(conf/lightning.yaml), and a test of the best checkpoint at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import hydra
import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tests.bench.naive.digits import splits

CLASSES = 10


class Digits(L.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        parts = [TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in splits()]
        self.train, self.val, self.test = parts

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, self.batch_size)


class Classifier(L.LightningModule):
    def __init__(self, units: Sequence[int], learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters({"units": list(units), "learning_rate": learning_rate})
        widths = [64, *units]
        layers = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Linear(before, after), nn.ReLU())
        ]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc, self.test_acc = (
            MulticlassAccuracy(CLASSES, average="micro") for _ in range(3)
        )
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric() for _ in range(3))
        self.val_acc_best = MaxMetric()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        loss, predicted, y = self._step(batch)
        self.train_loss(loss)
        self.train_acc(predicted, y)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        loss, predicted, y = self._step(batch)
        self.val_loss(loss)
        self.val_acc(predicted, y)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True)

    def test_step(self, batch: list[Tensor], number: int) -> None:
        loss, predicted, y = self._step(batch)
        self.test_loss(loss)
        self.test_acc(predicted, y)
        self.log("test/loss", self.test_loss, on_step=False, on_epoch=True)
        self.log("test/acc", self.test_acc, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])

    def _step(self, batch: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self(x)
        return self.criterion(logits, y), logits.argmax(1), y


@hydra.main(version_base="1.3", config_path="conf", config_name="lightning")
def main(config: DictConfig) -> float:
    torch.set_num_threads(1)
    L.seed_everything(config.seed, workers=True)
    data = hydra.utils.instantiate(config.data)
    model = hydra.utils.instantiate(config.model)
    callbacks = [hydra.utils.instantiate(callback) for callback in config.callbacks]
    logger = hydra.utils.instantiate(config.logger)
    trainer = hydra.utils.instantiate(config.trainer, callbacks=callbacks, logger=logger)
    plain = OmegaConf.to_container(config, resolve=True)
    logger.log_hyperparams({"config": plain, "parameters": sum(p.numel() for p in model.parameters())})
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, ckpt_path=trainer.checkpoint_callback.best_model_path)
    return float(trainer.callback_metrics["test/acc"])


if __name__ == "__main__":
    main()
