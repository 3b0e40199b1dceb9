"""Which model takes which data: what a row is, without loading it; the refusal; the table in docs/."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.core.config.run_config import Misfit, ModelConfig, resolve_model
from harness.core.data import dataset as data
from harness.core.data.dataset import DataConfig
from harness.core.data.loaders import LOADERS, SAMPLES
from harness.core.network import Input, ModelSpec
from harness.core.validation import ConfigError
from harness.shell.commands import main
from tests.support.paths import ROOT

OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "adding_problem": {"steps": 9, "rows": 40},
    "make_classification": {"n_features": 6, "n_classes": 3, "n_informative": 3},
    "movie_reviews": {"vocabulary": 50, "max_length": 7},
}
IMAGE_NETWORK = ({"kind": "to_image"}, {"kind": "flatten"}, {"kind": "output"})


@pytest.mark.parametrize("options", [{}, OTHER_OPTIONS], ids=["defaults", "options"])
@pytest.mark.parametrize("name", LOADERS)
def test_the_description_of_a_row_matches_the_loader(name: str, options: dict[str, Any]) -> None:
    """Catches: a pair that is refused, or let through, because of a shape that the data don't have."""
    if options and name not in options:
        pytest.skip("no option changes the shape of its rows")
    config = DataConfig(name, options=options.get(name, {}))
    described, real = data.sample(config), data.load(config).sample
    assert (described.name, described.input) == (real.name, real.input)
    assert (described.task.kind, described.task.outputs) == (real.task.kind, real.task.outputs)
    assert SAMPLES.keys() == LOADERS.keys()


def test_a_data_file_keeps_whether_it_holds_sequences(tmp_path: Path) -> None:
    """Catches: a worker that takes a sequence for an image, since the file does not say."""
    for name in ("italy_power_demand", "iris"):
        dataset = data.load(DataConfig(name))
        data.save(dataset, tmp_path / name)
        assert data.open_dataset(tmp_path / name).input == dataset.input


def test_a_sequence_is_no_image_unless_it_is_reshaped_into_one() -> None:
    """Catches: windows over features in whatever order they have; a way out that is closed as well."""
    sequence, image = Input((8, 6), sequence=True), Input((8, 6))
    with pytest.raises(ConfigError, match=r"to_image .*\(8, 6\).* are sequences, which are for conv1d, rnn"):
        ModelSpec.parse(list(IMAGE_NETWORK)).resolve(sequence, 2)
    assert ModelSpec.parse(list(IMAGE_NETWORK)).resolve(image, 2).out_shape == (2,)
    tree = [{"kind": "conv2d", "filters": 2}, {"kind": "flatten"}, {"kind": "output"}]
    with pytest.raises(ConfigError, match="`to_image` makes one, `conv1d` takes sequences"):
        ModelSpec.parse(tree).resolve(sequence, 2)
    reshaped = [{"kind": "reshape", "shape": [8, 6, 1]}, *tree]
    assert ModelSpec.parse(reshaped).resolve(sequence, 2).out_shape == (2,)


def test_a_misfit_knows_its_model_and_data_and_is_one_for_all_seeds() -> None:
    """Catches: a message for each of many runs that have one mistake."""
    mistakes = []
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            resolve_model(ModelConfig("m", IMAGE_NETWORK), "auto", data.sample(DataConfig("wine")))
        mistakes += caught.value.mistakes
    (mistake,) = ConfigError(mistakes).mistakes
    assert isinstance(mistake, Misfit)
    assert (mistake.model.name, mistake.sample.name) == ("m", "wine")


def refusal(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the error lines of a refused command."""
    with contextlib.suppress(SystemExit):
        assert main.main(arguments) == 2
    output = capfd.readouterr()
    assert output.out == ""
    return output.err.splitlines()


def table_cells() -> dict[tuple[str, str], str]:
    """The cells of the table of docs/reference/models.md, by data set and model."""
    lines = (ROOT / "docs/reference/models.md").read_text("utf-8").splitlines()
    header, _, *rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return {
        (row[0].strip(" `"), model): cell.strip()
        for row in rows
        for models, cell in zip(header[3:], row[3:], strict=True)
        for model in re.findall(r"`(\w+)`", models)
    }


def data_for(model: str) -> list[str]:
    """The data sets that a model takes, by the table."""
    return sorted(data for (data, name), cell in table_cells().items() if name == model and cell != "–")


def models_for(data: str) -> list[str]:
    """The models that take a data set, by the table."""
    return sorted(model for (name, model), cell in table_cells().items() if name == data and cell != "–")


@pytest.mark.parametrize("command", [(), ("show",), ("certify",)])
def test_a_refusal_names_the_data_and_the_models_that_go_together(
    command: tuple[str, ...], workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: a bare shape; a list that isn't that of the table; a command that is refused without it."""
    title, what, suitable, able, source = refusal(capfd, *command, "model=cnn", "data=mnist_1d")
    assert title.startswith("1 mistake") and "model 'cnn' can't take data 'mnist_1d'" in what
    assert suitable.strip() == f"data that cnn takes: {', '.join(data_for('cnn'))}"
    assert able.strip() == f"models that take mnist_1d: {', '.join(models_for('mnist_1d'))}"
    assert source.endswith("conf/model/cnn.yaml")
    assert list(workdir.iterdir()) == []


def test_the_users_own_files_are_suggested_too(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Catches: only our files; a file that is built on another or has a mistake that hides all the others."""
    files = {
        "model/mine.yaml": "defaults: [cnn]\npool: 9\n",
        "model/broken.yaml": "name: [\n",
        "model/typo.yaml": "name: typo\nlayers: [{kind: flaten}]\n",
        "data/short.yaml": "name: adding_problem\noptions: {steps: 8}\n",
    }
    for name, text in files.items():
        path = workdir / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _, _, suitable, able, _ = refusal(capfd, "--config-dir", "own", "model=fnn", "data=movie_reviews")
    assert suitable.strip() == f"data that fnn takes: {', '.join(sorted([*data_for('fnn'), 'short']))}"
    assert able.strip() == f"models that take movie_reviews: {', '.join(models_for('movie_reviews'))}"
    _, _, suitable, able, _ = refusal(capfd, "--config-dir", "own", "model=mine", "data=iris")
    # pools of 9 need more than the 8 rows of digits
    assert "mnist_5k" in suitable and "digits" not in suitable


def test_a_sweep_is_refused_once_for_each_combination(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: the same three lines for each seed; two combinations that are taken for one."""
    sweep = ("-m", "model=cnn,fnn", "data=iris,movie_reviews", "seed=range(3)")
    lines = refusal(capfd, *sweep)
    assert lines[0].startswith("3 mistakes in the request")
    assert sum("can't take data" in line for line in lines) == 3
    assert sum("models that take movie_reviews" in line for line in lines) == 2
    assert [line.rpartition("/")[2] for line in lines if " in: " in line] == [
        "cnn.yaml",
        "cnn.yaml",
        "fnn.yaml",
    ]


def test_a_model_that_takes_nothing_as_it_is_configured(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches: other models and data as advice where a hyperparameter is wrong."""
    _, what, suitable, _ = refusal(capfd, "model=transformer", "model.heads=3")
    assert "can't share 64 features between 3 heads" in what
    assert suitable.strip() == "data that transformer takes: none, as it is configured"


def test_nothing_is_loaded_for_a_refusal(workdir: Path) -> None:
    """Catches: seconds of loading data before a mistake is reported that shapes alone show."""
    program = (
        "import sys; from harness.shell.commands import main; status = main.main(sys.argv[1:]); "
        "sys.exit(status if not {'sklearn', 'mlxtend', 'mlflow', 'torch'} & set(sys.modules) else 'loaded')"
    )
    command = [sys.executable, "-c", program, "model=cnn", "data=diabetes"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr


def test_the_table_is_that_of_the_code() -> None:
    """Catches: a model or data set that is missing in the table, and an outdated cell."""
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "tests/bench/pages/models.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs/reference/models.md").read_text("utf-8")
    assert module.page(text) == text, "python tests/bench/pages/models.py rewrites it"
    rows = [row for row in text.splitlines() if re.match(r"\| `\w+` \|", row)]
    assert [row.split("`")[1] for row in rows] == sorted(LOADERS)
