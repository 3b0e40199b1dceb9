"""README.md and docs/ are correct: commands work as printed, every key is documented, every link has a
target.

Each page is executed from top to bottom in one empty folder, as a reader would do it: its YAML files are
written to the path in their first line, its `console` and `python` blocks are run, and commands print the
output that the page shows below them. Blocks marked `sh` need a browser, an installation or another
interpreter, so only their words are checked. Blocks marked `text` are drawings.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import fields
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
from tests.support.pages import PAGES, blocks, first_missing_line, page_named
from tests.support.paths import CONF, ROOT
from tests.support.workspace import end


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def evenbench(words: list[str], folder: Path) -> tuple[int, str]:
    """Run the command in a folder; return its exit status and what it printed."""
    return end(forked_command.start(words, folder, environment()))


def run_page(page: Path, folder: Path) -> dict[str, str]:
    """Execute a page's blocks in the folder; return what each command printed."""
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
                for command, output in block.session():
                    program, *arguments = shlex.split(command, comments=True)
                    assert program == "evenbench"
                    line = shlex.join(arguments)
                    status, printed[line] = evenbench(arguments, folder)
                    assert status == 0, f"{line}\n{printed[line]}"
                    missing = first_missing_line(output, printed[line])
                    assert missing is None, f"{line}\ndid not print: {missing}\nbut:\n{printed[line]}"
    return printed


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_readme_works_from_top_to_bottom(tmp_path: Path) -> None:
    """Catches: a command, a file or a claim of the README that is no longer correct."""
    printed = run_page(ROOT / "README.md", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results"}
    extended = [text for text in printed.values() if "4 runs to do, 8 runs finished before" in text]
    assert len(extended) == 1, printed


COUNTS = {
    "architectures": "2 runs to do",
    "failures": "2 runs to do, 4 runs finished before",
    "sweeps": "4 runs to do, 8 runs finished before",
}
"""What a command of a page prints with exactly these numbers; elsewhere numbers may differ from the page."""


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda page: page.stem)
def test_every_other_page_works_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """Catches: a network in the docs that a framework refuses, or on which frameworks disagree; a drawing in
    the docs that differs from its command's output."""
    printed = run_page(page, tmp_path)
    assert COUNTS.get(page.stem, "") in "\n".join(printed.values())
    for drawn in tmp_path.glob("*.svg"):
        assert drawn.read_text("utf-8") == page_named(drawn.name).read_text("utf-8")


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """Catches: a block that no test checks."""
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"console", "python", "yaml", "sh", "text"}, page


def test_abridged_output_is_recognised() -> None:
    """Catches: an output on a page that is not checked, and one that is refused for its numbers or widths."""
    printed = "┏━━━━━┳━━━┓\n┃ model ┃ val/accuracy ┃\nfnn   0.95 ± 0.01  exact\n2 runs to do\n"
    assert first_missing_line(["┃ model ┃ val/accuracy ┃", "fnn 0.91 ± 0.2 exact"], printed) is None
    assert first_missing_line(["┏━━┳━━━━━┓", "...", "fnn ... exact", "4 runs to do"], printed) is None
    assert first_missing_line(["fnn 0.95 ± 0.01 fails"], printed) == "fnn 0.95 ± 0.01 fails"
    assert first_missing_line(["2 runs to do", "┃ model ┃"], printed) == "┃ model ┃"


SPANS = {(page.stem, span) for page in PAGES for span in re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))}


@pytest.mark.parametrize(("page", "span"), sorted(pair for pair in SPANS if pair[1].startswith("evenbench ")))
def test_commands_in_the_text_are_right(page: str, span: str, tmp_path: Path) -> None:
    """Catches: a command or an option in a sentence that has been renamed since."""
    _, first, *_ = words = shlex.split(span)
    if first in main.COMMANDS:
        _, help_text = evenbench([first, "--help"], tmp_path)
        assert all(word in help_text for word in words if word.startswith("--")), help_text
    else:
        shown = [] if "--cfg" in words else ["--cfg", "job"]
        status, printed = evenbench([*words[1:], *shown], tmp_path)
        assert status == 0, printed


def test_overrides_in_the_text_are_right() -> None:
    """Catches: a key or a value in a sentence that the command line would refuse."""
    spans = {span for _, span in SPANS if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)*=[^ =<]+", span)}
    assert len(spans) > 5
    with composing():
        for span in sorted(spans):
            override = OverridesParser.create().parse_override(span)
            value = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
            text = span if value is None else f"{override.key_or_group}={value}"
            refusals = {model: refusal(text, model) for model in ("fnn",)}
            if refusals["fnn"]:  # another model's hyperparameter
                refusals |= {model: refusal(text, model) for model in choices("model")}
            assert not all(refusals.values()), refusals["fnn"]


def refusal(override: str, model: str) -> str:
    """Why an override is refused with a model; empty if it is accepted."""
    try:
        checked, mistakes = overrides.check([override], overrides.find_groups([CONF]))
        assert not mistakes, mistakes
        config_of(*([] if override.startswith("model=") else [f"model={model}"]), *checked)
    except (ConfigError, HydraException) as error:
        return f"{override}: {error}"
    return ""


def test_commands_that_cannot_be_run_here_exist(tmp_path: Path) -> None:
    """Catches: a make target or a command that has been renamed since."""
    for block in (block for page in PAGES for block in blocks(page) if block.language == "sh"):
        for program, *arguments in block.commands():
            if program == "make":
                make = ["make", "--dry-run", *arguments]
                assert subprocess.run(make, cwd=ROOT, capture_output=True).returncode == 0, arguments
            elif program == "ray":
                pytest.importorskip("ray")
                ray = [Path(sys.executable).with_name("ray"), arguments[0], "--help"]
                help_text = subprocess.run(ray, capture_output=True, text=True, check=True).stdout
                options = [word.partition("=")[0] for word in arguments[1:]]
                assert all(option in help_text for option in options), arguments
            elif arguments[0] in main.COMMANDS:
                assert evenbench([*arguments, "--help"], tmp_path)[0] == 0
            else:
                here = [
                    re.sub(r"(framework\.python)=.*", rf"\1={sys.executable}", word) for word in arguments
                ]
                _, printed = evenbench([*here, "train.epochs=0"], tmp_path)
                assert printed.startswith("1 mistake in the request"), printed
                assert "train.epochs: 0 is out of range" in printed
    assert list(tmp_path.iterdir()) == []


def test_every_path_and_link_leads_somewhere() -> None:
    """Catches: a path or a heading that has been moved or renamed since."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, heading = target.partition("#")
            linked = (page.parent / name) if name else page
            assert linked.exists(), f"{page.name}: {target}"
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
    """The dotted keys of a nested mapping."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from keys(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix


def test_configuration_page_has_every_key_and_every_choice_and_no_other() -> None:
    """Catches: a key or a choice that was added, renamed or removed but not on the page."""
    text = page_named("configuration.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)`", text))
    accepted: set[str] = {"data.options"}
    with composing():
        for group in ("model", "framework", "data", "optimizer", "schedule"):
            for choice in choices(group):
                config = composed(f"{group}={choice}")
                plain = {str(key): _plain(config[key]) for key in config if key != "hydra"}
                # a file's inner mappings are values of one key; a loader's options are keys of their own
                plain["framework"] = dict.fromkeys(plain["framework"])
                accepted |= set(keys(plain))
                assert choice in named, f"{group}={choice}"
    assert sorted(accepted - named) == []
    sections = {field.name for field in fields(RunConfig)}
    documented = {name for name in named if "." in name and name.partition(".")[0] in sections}
    assert sorted(documented - accepted) == []


def _plain(node: object) -> object:
    from omegaconf import DictConfig, OmegaConf

    return OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node


def test_page_on_adding_has_every_layer_kind_and_initialiser() -> None:
    """Catches: a kind that was added without documentation."""
    text = page_named("adding.md").read_text("utf-8")
    for kind in (*(layer.kind for layer in Layer.__args__), "repeat", *INITIALISERS):
        assert f"`{kind}`" in text, kind


def test_leaderboard_picture_is_self_contained() -> None:
    """Catches: a picture that is not an SVG, or that loads fonts from another server when the page is
    opened."""
    text = page_named("leaderboard.svg").read_text("utf-8")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "url(http" not in text and "font-face" not in text
    assert "keras_jax" in text and "transformer" in text
