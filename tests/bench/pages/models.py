"""Write the table of docs/reference/models.md, how each model reads each data set: `python
tests/bench/pages/models.py`."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.core.config.run_config import model_config, resolve_model
from harness.core.data import dataset
from harness.core.data.dataset import DataConfig, Sample
from harness.core.network import Network
from harness.core.validation import ConfigError, parse

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "reference" / "models.md"
CONF = ROOT / "conf"
BEGIN, END = "<!-- table: python tests/bench/pages/models.py -->\n", "<!-- end -->"


def table() -> str:
    """The table in Markdown. Models that read every data set alike share a column."""
    samples = {path.stem: _sample(path) for path in sorted(CONF.glob("data/*.yaml"))}
    columns = {
        path.stem: tuple(_reading(path, sample) for sample in samples.values())
        for path in sorted(CONF.glob("model/*.yaml"))
    }
    grouped = [
        (", ".join(f"`{name}`" for name in group), cells)
        for cells, group in groupby(sorted(columns, key=lambda name: columns[name]), columns.__getitem__)
    ]
    rows = [
        ["data", "a sample", "to predict", *(names for names, _ in grouped)],
        ["---"] * (3 + len(grouped)),
    ]
    for index, (name, sample) in enumerate(samples.items()):
        rows.append([f"`{name}`", _text(sample), _task(sample), *(cells[index] for _, cells in grouped)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(text: str) -> str:
    """The page with its table written again."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def _section(path: Path) -> Any:
    group = path.parent.name
    return OmegaConf.to_container(OmegaConf.create({group: OmegaConf.load(path)})[group], resolve=True)


def _sample(path: Path) -> Sample:
    return dataset.sample(parse(DataConfig, _section(path), "data"))


def _reading(path: Path, sample: Sample) -> str:
    model = model_config(_section(path))
    try:
        network, _ = resolve_model(model, "auto", sample)
    except ConfigError:
        return "–"
    first = [node.out_shape for node in network.layers() if node.path.split(".")[0] == "0"]
    read = "×".join(map(str, first[-1] if first else network.input.shape))
    return f"{read} \\*" if model.reconstructs and not _compresses(network) else read


def _compresses(network: Network) -> bool:
    return min(math.prod(node.out_shape) for node in network.layers()) < math.prod(network.input.shape)


def _text(sample: Sample) -> str:
    rows, size = sample.input, "×".join(map(str, sample.input.shape))
    upto = "up to " if rows.lengths else ""
    if rows.vocabulary:
        return f"{upto}{size} token ids"
    if rows.sequence:
        return f"{upto}{rows.shape[0]} steps × {rows.shape[1]}"
    return f"image {size}" if len(rows.shape) > 1 else f"{size} number{'s' * (size != '1')}"


def _task(sample: Sample) -> str:
    return f"{sample.task.outputs} classes" if sample.task.kind == "classification" else "a number"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
