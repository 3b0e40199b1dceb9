"""Adapter processes: arguments and results arrive, and errors in the child fail the test."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests.support.adapter_process import AdapterProcesses, Adapters, CaseError


def echo(adapter: object, **arguments: Any) -> dict[str, Any]:
    print("not a reply")
    return arguments


def fail(adapter: object) -> None:
    raise ValueError("the reason")


def die(adapter: object) -> None:
    os._exit(7)


def pid(adapter: object) -> int:
    return os.getpid()


def test_arguments_and_results_arrive_bit_for_bit(adapters: Adapters) -> None:
    """Catches: arrays that lose digits or their dtype; output of a framework that is read as a reply."""
    array = np.array([[0.1, np.nan], [1e-300, -0.0]])
    sent = {"a": array, "b": [1, {"c": array.astype(np.float32)}], "d": None, "e": "text"}
    result = adapters("torch", "float64").call("tests.project.test_adapter_process:echo", **sent)
    assert result["a"].tobytes() == array.tobytes()
    assert result["b"][1]["c"].dtype == np.float32
    assert (result["b"][0], result["d"], result["e"]) == (1, None, "text")


def test_an_exception_is_a_failure_with_its_traceback(adapters: Adapters) -> None:
    """Catches: a child's failure that is swallowed, so that every test passes."""
    with pytest.raises(CaseError, match="ValueError: the reason"):
        adapters("torch", "float64").call("tests.project.test_adapter_process:fail")
    assert adapters("torch", "float64").call("tests.project.test_adapter_process:echo", still=1) == {
        "still": 1
    }


def test_a_death_is_a_failure_and_close_ends_the_child(tmp_path: Any) -> None:
    """Catches: a test session that waits for a dead child, and children that outlive the session."""
    processes = AdapterProcesses(tmp_path)
    with pytest.raises(CaseError, match="ended with status 7"):
        processes("torch", "float64").call("tests.project.test_adapter_process:die")
    child = processes("torch", "float32").call("tests.project.test_adapter_process:pid")
    processes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
