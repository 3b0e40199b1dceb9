"""The MLflow UI as users see it: a real server, a real browser, and a clean shutdown."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.validation import ConfigError
from harness.shell.tracking.server import free_port, run_ui
from harness.shell.tracking.store import open_store
from harness.shell.tracking.sync import sync
from harness.shell.tracking.views import VIEWS, runs_url, view_tags
from tests.support.matrix import matrix
from tests.support.paths import ROOT

FRAMEWORKS = ("torch", "keras", "keras_jax")
START_S = 120  # a server that is not up by then has failed


def make_results(results: Path) -> None:
    """Six finished trials: three frameworks, two seeds."""
    for index, framework in enumerate(FRAMEWORKS):
        for seed in range(2):
            folder = results / "runs" / f"{framework}-{seed}"
            folder.mkdir(parents=True)
            config = {
                **{"model": {"name": "fnn"}, "framework": {"name": framework}, "data": {"name": "digits"}},
                **{"optimizer": {"kind": "adam", "learning_rate": 1e-3}, "seed": seed, "repeat": 0},
                **{"execution": "epoch", "precision": "float32", "device": "cpu"},
            }
            job = {"run_id": folder.name, "study": "showcase", "config": config}
            (folder / "job.json").write_text(json.dumps(job))
            lines = []
            for epoch in range(1, 11):
                loss = 2.0 / (epoch + index + 0.1 * seed)
                metrics = {"train/loss": loss, "val/loss": 1.1 * loss, "val/accuracy": 1 - 0.3 * loss}
                record = {"event": "epoch", "time_ms": 1_760_000_000_000 + epoch, "epoch": epoch}
                lines.append(json.dumps({**record, "metrics": metrics}) + "\n")
            (folder / "events.jsonl").write_text("".join(lines))
            final = {"test/accuracy": 0.95 + 0.01 * index + 0.001 * seed, "test/loss": 0.2, "test/f1": 0.94}
            speed = {"speed/step_ms": 1.0 + index, "speed/samples_per_second": 32000.0 / (1 + index)}
            rest = {"time/compile_s": 0.5 * index, "time/train_s": 1.0, "memory/peak_mb": 300.0 + 100 * index}
            result = {"run_id": folder.name, "status": "finished", "metrics": {**final, **speed, **rest}}
            (folder / "result.json").write_text(json.dumps(result))


@contextlib.contextmanager
def user_interface(results: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run `run_ui` in a new process; yields it with the lines that it printed until it was ready."""
    code = (
        "import sys; from pathlib import Path; from harness.shell.tracking.server import run_ui\n"
        f"sys.exit(run_ui(Path(sys.argv[1]), {', '.join(arguments)}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(results)], stdout=subprocess.PIPE, text=True, env=environment
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("Press Ctrl-C"):
                break
        assert lines and lines[-1].startswith("Press Ctrl-C"), lines
        yield process, lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)


@pytest.fixture(scope="module")
def showcase(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A results folder with trials, and the output of the UI on it."""
    results = tmp_path_factory.mktemp("show case") / "results"
    make_results(results)
    sync(results, open_store(results))
    with user_interface(results) as (_, lines):
        yield results, lines


def browser(profile: Path) -> Any:
    """Headless Chromium with a fresh profile; the test is skipped if it is not installed."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in [*switches.split(), "disable-component-update", "disable-sync", "window-size=1600,1000"]:
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={profile}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))


def wait_for(driver: Any, *texts: str) -> str:
    """Wait until the page has all of `texts`, and return its text."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def shown(_: Any) -> str | None:
        page = str(driver.find_element(By.TAG_NAME, "body").text)
        return page if all(text in page for text in texts) else None

    try:
        return str(WebDriverWait(driver, 60).until(shown))
    except Exception as error:
        page = driver.find_element(By.TAG_NAME, "body").text
        raise AssertionError(f"the page lacks some of {texts}:\n{page}") from error


def address(lines: list[str], name: str) -> str:
    """The URL that was printed for a view."""
    return next(line.split()[-1] for line in lines if line.startswith(name))


@pytest.mark.slow
def test_the_printed_urls_show_the_trials_as_charts(showcase: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Catches: an undocumented view format that changed, an empty page, children hidden in parents."""
    _, lines = showcase
    driver = browser(tmp_path / "profile")
    try:
        driver.get(address(lines, "Leaderboard"))
        groups = [f"Group: fnn {framework} digits" for framework in FRAMEWORKS]
        page = wait_for(
            driver, "shared view", "test/accuracy", "speed/step_ms", "fnn torch digits s0", *groups
        )
        assert "\nshowcase" not in page, "the parent run is listed among the trials"
        driver.save_screenshot(str(tmp_path / "leaderboard.png"))
        driver.get("about:blank")
        driver.get(address(lines, "Curves"))
        wait_for(
            driver, "shared view", "train/loss", "val/loss", "fnn torch digits s0", "fnn keras_jax digits s1"
        )
        driver.save_screenshot(str(tmp_path / "curves.png"))
    finally:
        driver.quit()


@pytest.mark.slow
def test_a_port_in_use_is_refused_with_a_free_one(showcase: tuple[Path, list[str]]) -> None:
    """Catches: a server that dies on a port in use, or answers at another server's URL."""
    results, lines = showcase
    port = int(address(lines, "Leaderboard").split("/")[2].rpartition(":")[2])
    with pytest.raises(ConfigError) as caught:
        run_ui(results, port=port)
    assert caught.value.mistakes[0].key == "port" and "in use" in str(caught.value)
    assert caught.value.mistakes[0].suggestion == str(free_port(first=port + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", matrix([signal.SIGINT, signal.SIGTERM], lambda number: number == signal.SIGINT)
)
def test_a_signal_stops_the_whole_server(showcase: tuple[Path, list[str]], number: signal.Signals) -> None:
    """Catches: server processes that remain and block the port and the database."""
    import psutil

    results, _ = showcase
    port = free_port(first=20000 + os.getpid() % 20000)
    with user_interface(results, f"port={port}") as (process, lines):
        assert f":{port}/" in address(lines, "Leaderboard")
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.send_signal(number)
        assert process.wait(60) == 0
    assert [member for member in family if member.is_running()] == []


def test_a_tracking_server_gets_no_second_ui(
    showcase: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a local server in addition to a remote one, or a URL of the wrong experiment."""
    _, lines = showcase
    base = address(lines, "Leaderboard").split("/#")[0]
    assert run_ui(tmp_path, base) == 0
    assert address(capsys.readouterr().out.splitlines(), "Leaderboard") == address(lines, "Leaderboard")


def test_runs_reach_a_tracking_server(showcase: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Catches: what works on SQLite but not over HTTP: NaN, empty batches, artifacts, paging, reopening."""
    _, lines = showcase
    base = address(lines, "Leaderboard").split("/#")[0]
    make_results(tmp_path)
    bad = tmp_path / "runs" / "torch-0"
    result = json.loads((bad / "result.json").read_text())
    (bad / "result.json").write_text(
        json.dumps({**result, "status": "diverged", "metrics": {"test/loss": 1e999}})
    )
    store = open_store(tmp_path, base)
    assert sync(tmp_path, store).added == 6
    assert sync(tmp_path, store).present == 6
    query = f"tags.results = '{store.results_id}' and tags.kind = 'trial'"
    runs = store.client.search_runs([store.experiment_id], query)
    assert sorted(run.info.status for run in runs) == ["FAILED"] + ["FINISHED"] * 5
    names = {item.path for item in store.client.list_artifacts(runs[0].info.run_id)}
    assert {"job.json", "events.jsonl", "result.json"} <= names


def test_free_ports_are_found() -> None:
    """Catches: a port in use that counts as free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(first=port) != port


def test_views_fit_into_tags() -> None:
    """Catches: a view that MLflow refuses for its length (20 000), and JSON that the page can't read."""
    assert len(view_tags()) == len(VIEWS)
    for value in view_tags().values():
        assert len(value) < 20_000
        assert set(json.loads(json.loads(value)["state"])) >= {"searchFilter", "compareRunCharts", "groupBy"}
    assert "#/experiments/7/runs?viewStateShareKey=" in runs_url("http://127.0.0.1:5001", "7")
