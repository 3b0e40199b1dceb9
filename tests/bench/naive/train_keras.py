"""The naive Keras script: `KERAS_BACKEND=jax python -m tests.bench.naive.train_keras -m seed=0,1,2,3`."""

from __future__ import annotations

from typing import Any

import hydra
import keras
import mlflow
from omegaconf import DictConfig, OmegaConf

from tests.bench.naive.digits import splits


class Log(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        mlflow.log_metrics(logs, step=epoch)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    keras.utils.set_random_seed(config.seed)
    train, val, test = splits()
    dense = [keras.layers.Dense(units, activation="relu") for units in config.units]
    model = keras.Sequential([keras.Input((64,)), *dense, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(config.learning_rate), loss, metrics=["accuracy"])
    mlflow.set_tracking_uri(config.tracking_uri)
    mlflow.set_experiment("naive")
    with mlflow.start_run():
        mlflow.log_params(OmegaConf.to_container(config))
        rows = len(train[0]) // config.batch_size * config.batch_size
        x, y = train[0][:rows], train[1][:rows]
        options = {"batch_size": config.batch_size, "epochs": config.epochs, "verbose": 0}
        model.fit(x, y, validation_data=val, callbacks=[Log()], **options)
        _, accuracy = model.evaluate(*test, verbose=0)
        mlflow.log_metric("test_accuracy", accuracy)
        model.save_weights("network.weights.h5")
        mlflow.log_artifact("network.weights.h5")
    return accuracy


if __name__ == "__main__":
    main()
