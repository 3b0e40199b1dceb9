"""What README.md and docs/ say is so: commands work as they stand, every key is there, every link leads on.

Each page is done from top to bottom in one empty folder, as a reader would: its YAML files are written where
their first line says, its `console` and `python` blocks are run. Blocks marked `sh` need a browser, an
installation or another interpreter, so they are checked in another way.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from harness.core.config.run_config import RunConfig
from harness.core.network import Layer
from harness.core.network.initialisers import INITIALISERS
from harness.core.validation import ConfigError
from harness.shell.commands import main
from harness.shell.compose import overrides
from tests.support import forked_command
from tests.support.compose import choices, composed, composing, config_of
from tests.support.paths import CONF, ROOT
from tests.support.workspace import end

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results/README.md"]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str

    def commands(self) -> Iterator[list[str]]:
        """The shell commands in it, as words."""
        for line in self.text.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*pair) for pair in found]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def evenbench(words: list[str], folder: Path) -> tuple[int, str]:
    """Give the command in a folder; its exit status and what it printed."""
    return end(forked_command.start(words, folder, environment()))


def do(page: Path, folder: Path) -> dict[str, str]:
    """Do a page's blocks in the folder; returns what each command printed."""
    printed: dict[str, str] = {}
    for block in blocks(page):
        match block.language:
            case "yaml":
                first, _, rest = block.text.partition("\n")
                path = folder / first.removeprefix("# ")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(rest)
            case "python":
                code = [sys.executable, "-c", block.text]
                done = subprocess.run(code, cwd=folder, env=environment(), capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                assert 0 < float(done.stdout) < 1e-14  # "near 1e-16"
            case "console":
                for program, *arguments in block.commands():
                    assert program == "evenbench"
                    line = shlex.join(arguments)
                    status, printed[line] = evenbench(arguments, folder)
                    assert status == 0, f"{line}\n{printed[line]}"
    return printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_works_from_top_to_bottom(tmp_path: Path) -> None:
    """Catches: a command, a file or a claim of the README that is no longer so."""
    printed = do(ROOT / "README.md", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results", "my_conf"}
    repeated = [text for text in printed.values() if "4 runs to do, 8 runs finished before" in text]
    assert len(repeated) == 1, printed  # the sweep that goes on
    assert "2 runs to do" in printed["--config-dir my_conf experiment=quick"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda page: page.stem)
def test_every_other_page_works_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """Catches: a network in the docs that no framework takes, or that they don't agree on; a drawing in the
    docs that is not what its command draws."""
    do(page, tmp_path)
    for drawn in tmp_path.glob("*.svg"):
        assert drawn.read_text("utf-8") == (page.parent / drawn.name).read_text("utf-8")


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """Catches: a block that no test looks at."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"console", "python", "yaml", "sh"}, page


SPANS = {(page.stem, span) for page in PAGES for span in re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))}


@pytest.mark.parametrize(("page", "span"), sorted(pair for pair in SPANS if pair[1].startswith("evenbench ")))
def test_commands_in_the_text_are_right(page: str, span: str, tmp_path: Path) -> None:
    """Catches: a command or an option that went by another name when the sentence was written."""
    _, first, *_ = words = shlex.split(span)
    if first in main.COMMANDS:
        _, help_text = evenbench([first, "--help"], tmp_path)
        assert all(word in help_text for word in words if word.startswith("--")), help_text
    else:
        shown = [] if "--cfg" in words else ["--cfg", "job"]
        status, printed = evenbench([*words[1:], *shown], tmp_path)
        assert status == 0, printed


def test_overrides_in_the_text_are_right() -> None:
    """Catches: a key or a value in a sentence that would be refused if it were typed."""
    asked = {span for _, span in SPANS if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*=[^ =<]+", span)}
    assert len(asked) > 5
    with composing():
        for span in sorted(asked):
            override = OverridesParser.create().parse_override(span)
            value = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
            text = span if value is None else f"{override.key_or_group}={value}"
            refusals = {model: refused(text, model) for model in ("fnn",)}
            if refusals["fnn"]:  # another model's hyperparameter
                refusals |= {model: refused(text, model) for model in choices("model")}
            assert not all(refusals.values()), refusals["fnn"]


def refused(override: str, model: str) -> str:
    """Why an override is refused with a model; empty if it is not."""
    try:
        kept, mistakes = overrides.check([override], overrides.find_groups([CONF]))
        assert not mistakes, mistakes
        config_of(*([] if override.startswith("model=") else [f"model={model}"]), *kept)
    except (ConfigError, HydraException) as error:
        return f"{override}: {error}"
    return ""


def test_the_commands_that_cannot_be_run_here_exist(tmp_path: Path) -> None:
    """Catches: a make target or a command that goes by another name."""
    for block in (block for page in PAGES for block in blocks(page) if block.language == "sh"):
        for program, *arguments in block.commands():
            if program == "make":
                make = ["make", "--dry-run", *arguments]
                assert subprocess.run(make, cwd=ROOT, capture_output=True).returncode == 0, arguments
            elif program == "ray":
                pytest.importorskip("ray")
                asked = [Path(sys.executable).with_name("ray"), arguments[0], "--help"]
                said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
                options = [word.partition("=")[0] for word in arguments[1:]]
                assert all(option in said for option in options), arguments
            elif arguments[0] in main.COMMANDS:
                assert evenbench([*arguments, "--help"], tmp_path)[0] == 0
            else:
                here = [
                    re.sub(r"(framework\.python)=.*", rf"\1={sys.executable}", word) for word in arguments
                ]
                _, said = evenbench([*here, "train.epochs=0"], tmp_path)
                assert said.startswith("1 mistake in the request"), said
                assert "train.epochs: 0 is out of range" in said
    assert list(tmp_path.iterdir()) == []


def test_every_path_and_link_leads_somewhere() -> None:
    """Catches: a file that was moved or renamed and is still spoken of by its old name; a lost heading."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, heading = target.partition("#")
            linked = (page.parent / name) if name else page
            assert linked.is_file(), f"{page.name}: {target}"
            anchors = (
                [
                    re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
                    for title in re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
                ]
                if heading
                else []
            )
            assert not heading or heading in anchors, f"{page.name}: {target}"
        for path in re.findall(r"`((?:conf|harness|adapters|tests|docs)/[\w/.]*)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from keys(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix


def test_the_configuration_page_has_every_key_and_every_choice_and_no_other() -> None:
    """Catches: a key or a choice that was added, renamed or removed without a word."""
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)`", text))
    there: set[str] = {"data.options"}
    with composing():
        for group in ("model", "framework", "data", "optimizer", "schedule"):
            for choice in choices(group):
                config = composed(f"{group}={choice}")
                plain = {str(key): _plain(config[key]) for key in config if key != "hydra"}
                # a file's inner mappings are values of one key; a loader's options are keys of their own
                plain["framework"] = dict.fromkeys(plain["framework"])
                there |= set(keys(plain))
                assert choice in named, f"{group}={choice}"
    assert sorted(there - named) == []
    sections = {field.name for field in fields(RunConfig)}
    spoken_of = {name for name in named if "." in name and name.partition(".")[0] in sections}
    assert sorted(spoken_of - there) == []


def _plain(node: object) -> object:
    from omegaconf import DictConfig, OmegaConf

    return OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node


def test_the_page_on_adding_has_every_layer_kind_and_initialiser() -> None:
    """Catches: a kind that was added without a word on how to use it."""
    text = (ROOT / "docs/adding.md").read_text("utf-8")
    for kind in (*(layer.kind for layer in Layer.__args__), "repeat", *INITIALISERS):
        assert f"`{kind}`" in text, kind


def test_the_picture_is_drawn_without_help_from_elsewhere() -> None:
    """Catches: a picture that is none, or that loads fonts from another server when the page is opened."""
    text = (ROOT / "docs/leaderboard.svg").read_text("utf-8")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "url(http" not in text and "font-face" not in text
    assert "keras_jax" in text and "transformer" in text
