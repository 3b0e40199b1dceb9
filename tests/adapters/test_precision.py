"""What the precisions are: which devices have them, and that bf16 trains every model in every framework.

Rounding to bfloat16 is no affair of the certificates, which are about mathematics; what is asked here is that
the whole training still comes out, and that float32 stays where it is said to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from harness.core.adapter import Adapter, Epoch, Examples
from harness.core.config.run_config import RunConfig
from harness.core.data import dataset as data
from harness.core.machine import precision
from harness.core.network import initialisers
from harness.core.training import schedules
from harness.core.training.batches import batch_order
from tests.support.adapter_process import Adapters, frameworks
from tests.support.compose import choices, composing, config_of
from tests.support.matrix import matrix

EPOCHS = 3
LIKE_FLOAT32 = 0.03  # of the loss after some epochs, relative; what was found is below 0.003
ROUNDED = 1e-5  # of outputs, relative to the largest: what float32 in another order stays below


def train(adapter: Adapter, plain: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Runs in a lab: the losses of all epochs, the test outputs, weights and state at the end."""
    config = RunConfig.parse(plain)
    dataset = config.model.view(data.load(config.data))
    plan = config.plan(dataset)
    program = adapter.build(plan)
    trainer = program.trainer(Examples(dataset.x, dataset.y, dataset.lengths), config.optimizer, 0)
    trainer.load(initialisers.initialise(plan.network.params(), 0, plan.dtype))
    rates = schedules.learning_rates(config.schedule, config.optimizer.learning_rate, epochs, plan.steps)
    losses = []
    for epoch in range(epochs):
        trainer.train([Epoch(batch_order(0, epoch, plan.rows[0], plan.batch_size), rates[epoch])])
        trainer.sync()
        losses.append(float(trainer.losses().mean()))
    return {
        "losses": losses,
        "outputs": trainer.predict("test"),
        "y": dataset.y["test"],
        "weights": trainer.weights(),
        "slots": dict(trainer.state().slots),
        "settings": program.settings(),
        "environment": adapter.environment(),
    }


@pytest.fixture(scope="module")
def composable() -> Iterator[None]:
    with composing():
        yield


@pytest.fixture(scope="module")
def in_float32(composable: None, adapters: Adapters) -> Callable[[str], dict[str, Any]]:
    """The training of a model in float32, in the framework that starts the fastest."""
    results: dict[str, dict[str, Any]] = {}

    def get(model: str) -> dict[str, Any]:
        if model not in results:
            plain = config_of(f"model={model}", "framework=torch").to_plain()
            torch = adapters("torch", "float32")
            results[model] = torch.call("tests.adapters.test_precision:train", plain=plain, epochs=EPOCHS)
        return results[model]

    return get


@pytest.mark.parametrize("model", matrix(choices("model"), ("fnn",).__contains__))
@pytest.mark.parametrize("framework", matrix(frameworks(), ("torch",).__contains__))
def test_bf16_trains_like_float32(
    framework: str, model: str, adapters: Adapters, in_float32: Callable[[str], dict[str, Any]]
) -> None:
    """Catches: a layer that mixed precision breaks, in one framework alone; weights or optimizer state in
    bfloat16, where small updates vanish; losses or outputs that are not float32; a switch without effect."""
    plain = config_of(f"model={model}", f"framework={framework}", "precision=bf16").to_plain()
    results = adapters(framework, "bf16").call(
        "tests.adapters.test_precision:train", plain=plain, epochs=EPOCHS
    )
    reference = in_float32(model)
    first, last = results["losses"][0], results["losses"][-1]
    assert last < first and last == pytest.approx(reference["losses"][-1], rel=LIKE_FLOAT32)
    arrays = [results["outputs"], *results["weights"].values(), *results["slots"].values()]
    assert {array.dtype.name for array in arrays} == {"float32"}
    difference = np.abs(results["outputs"] - reference["outputs"]).max() / np.abs(reference["outputs"]).max()
    assert difference > ROUNDED, "nothing was computed in bfloat16"
    settings = results["settings"]
    assert settings.get("autocast", settings.get("dtype_policy")) in ("bfloat16", "mixed_bfloat16")
    assert "outputs" in settings["float32_layers"]


@pytest.mark.parametrize("framework", frameworks())
def test_float32_is_float32(framework: str, composable: None, adapters: Adapters) -> None:
    """Catches: TF32 left on, as TensorFlow and torch's convolutions have it by default; mixed precision that
    a float32 run says it had."""
    plain = config_of("model=fnn", f"framework={framework}").to_plain()
    results = adapters(framework, "float32").call(
        "tests.adapters.test_precision:train", plain=plain, epochs=1
    )
    assert results["environment"]["tf32"] is False
    assert results["settings"].keys().isdisjoint({"autocast", "dtype_policy", "float32_layers"})


def switches(adapter: Adapter) -> list[list[bool | str]]:
    """Runs in a lab: torch's switches as the adapter sets them for tf32, then for float32."""
    import torch

    from adapters.torch.adapter import set_tf32

    results: list[list[bool | str]] = []
    for mode in ("tf32", "float32"):
        set_tf32(mode)  # type: ignore[arg-type]
        backends = torch.backends
        cuda = [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
        results.append([*cuda, torch.get_float32_matmul_precision()])
    return results


def test_tf32_is_both_of_torchs_switches(adapters: Adapters) -> None:
    """Catches: products that round and convolutions that don't, or the other way round; a switch that stays
    on for the float32 that comes after."""
    on, off = adapters("torch", "float32").call("tests.adapters.test_precision:switches")
    assert on == [True, True, "high"] and off == [False, False, "highest"]


@pytest.mark.parametrize(
    ("device", "capability", "possible"),
    [
        ("cpu", None, {"float32", "float64", "bf16"}),
        ("cuda", (7, 5), {"float32", "float64"}),
        ("cuda:1", (8, 0), {"float32", "float64", "tf32", "bf16"}),
        ("cuda", (12, 0), {"float32", "float64", "tf32", "bf16"}),
        ("cuda", None, {"float32", "float64", "tf32", "bf16"}),
    ],
)
def test_which_device_has_which_precision(
    device: str, capability: tuple[int, int] | None, possible: set[str]
) -> None:
    """Catches: a precision that frameworks leave silently for another one; one that is refused though the
    card has it; capabilities that are compared as texts."""
    every = ("float32", "float64", "tf32", "bf16")
    refused = {one: precision.mistakes(one, device, capability) for one in every}  # type: ignore[arg-type]
    assert {one for one in every if not refused[one]} == possible
    for (mistake,) in filter(None, refused.values()):
        assert mistake.key == "precision" and set(mistake.allowed.split(", ")) == possible
