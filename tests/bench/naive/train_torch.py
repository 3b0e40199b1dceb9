"""The naive PyTorch script: `python -m tests.bench.naive.train_torch -m seed=0,1,2,3`."""

from __future__ import annotations

import hydra
import mlflow
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.bench.naive.digits import splits


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    train, val, test = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in splits())
    loader = DataLoader(TensorDataset(*train), config.batch_size, shuffle=True, drop_last=True)
    first, second = config.units
    model = nn.Sequential(
        nn.Linear(64, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    mlflow.set_tracking_uri(config.tracking_uri)
    mlflow.set_experiment("naive")
    with mlflow.start_run():
        mlflow.log_params(OmegaConf.to_container(config))
        for epoch in range(config.epochs):
            losses = []
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            val_loss, val_accuracy = evaluate(model, *val)
            mlflow.log_metric("train_loss", float(np.mean(losses)), step=epoch)
            mlflow.log_metric("val_loss", val_loss, step=epoch)
            mlflow.log_metric("val_accuracy", val_accuracy, step=epoch)
        _, accuracy = evaluate(model, *test)
        mlflow.log_metric("test_accuracy", accuracy)
        torch.save(model.state_dict(), "weights.pt")
        mlflow.log_artifact("weights.pt")
    return accuracy


@torch.no_grad()
def evaluate(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    logits = model(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


if __name__ == "__main__":
    main()
