"""The adapter itself: imports Keras on one backend, configures the process, and builds programs.

It imports the two modules of a backend by name, so that the other backends are never loaded.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from adapters.keras.xla_flags import before_import
from harness.core import fast_imports
from harness.core.adapter import AdapterOptions, Execution, Plan, Program, storage
from harness.core.machine import matmul
from harness.core.validation import ConfigError, Mistake, nearest

_BACKENDS = {
    "tensorflow": "adapters.keras.backends.tensorflow",
    "jax": "adapters.keras.backends.jax",
    "torch": "adapters.keras.backends.torch",
}

# Packages that Keras imports if they are installed and that no training needs: for its scikit-learn wrappers,
# plots and data frames. They account for half of its import time on JAX, and two fifths on TensorFlow.
UNNEEDED_PACKAGES = ("matplotlib", "pandas", "sklearn")


class KerasAdapter:
    """Keras with one backend in this process."""

    def __init__(self, options: AdapterOptions, device: ModuleType, loops: ModuleType) -> None:
        self._options = options
        self._device = device
        self._loops = loops

    def executions(self) -> tuple[Execution, ...]:
        """The executions that this backend offers."""
        executions: tuple[Execution, ...] = self._loops.EXECUTIONS
        return executions

    def environment(self) -> dict[str, object]:
        """Versions, threads and devices as Keras and its backend report them."""
        keras = importlib.import_module("keras")
        described: dict[str, object] = self._device.environment(self._options)
        versions = {"keras": keras.__version__, "backend": keras.backend.backend()}
        return {**versions, "imported_without": ", ".join(UNNEEDED_PACKAGES), **described}

    def build(self, plan: Plan) -> Program:
        """Build the program of a plan; raises ConfigError for a plan that this process cannot run."""
        mistakes = []
        allowed = self.executions()
        if plan.execution not in allowed:
            problem = f"keras on {self._options.backend} has no execution {plan.execution!r}"
            mistakes.append(Mistake("execution", problem, ", ".join(allowed)))
        for key in ("precision", "device"):
            requested, fixed = getattr(plan, key), getattr(self._options, key)
            if requested != fixed:
                mistakes.append(Mistake(key, f"{requested!r} requested, but this process uses {fixed!r}"))
        if mistakes:
            raise ConfigError(mistakes)
        program: Program = self._loops.build(plan)
        return program

    def multiply(self, size: int, repeats: int) -> list[float]:
        """Time the backend's own matrix product, without Keras' wrapper; see `harness.core.adapter`."""
        return matmul.time_calls(self._device.product(size, self._options), repeats)

    def start_device_peak(self) -> bool:
        """Start a new memory peak if the backend supports it."""
        started: bool = self._device.start_device_peak(self._options)
        return started

    def device_peak_mb(self) -> float | None:
        """The memory peak as counted by the backend, in MB (10^6 bytes); None on a CPU."""
        peak: float | None = self._device.device_peak_mb(self._options)
        return peak


def adapter(options: AdapterOptions) -> KerasAdapter:
    """Import Keras on `options.backend`, and set precision, threads and device for this process.

    Raises ConfigError if Keras already runs on another backend, or the backend does not support the options.
    """
    if options.backend not in _BACKENDS:
        problem = f"{options.backend!r} is not a backend of Keras"
        allowed = ", ".join(_BACKENDS)
        raise ConfigError([Mistake("backend", problem, allowed, nearest(options.backend, _BACKENDS))])
    before_import(options)
    with fast_imports.fast_import(without=UNNEEDED_PACKAGES):
        keras = importlib.import_module("keras")
    if keras.backend.backend() != options.backend:
        problem = (
            f"Keras already runs on {keras.backend.backend()!r} in this process, not {options.backend!r}"
        )
        raise ConfigError([Mistake("backend", problem)])
    keras.config.set_floatx(storage(options.precision))
    if options.precision == "bf16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    if options.precision == "float64":
        _keep_float64()
    package = _BACKENDS[options.backend]
    device = importlib.import_module(f"{package}.device")
    loops = importlib.import_module(f"{package}.loops")
    device.configure(options)
    return KerasAdapter(options, device, loops)


def _keep_float64() -> None:
    """Stop Keras from demoting float64 to float32.

    On JAX and torch the type promotion of Keras demotes float64 by this table, even with
    `set_floatx("float64")`: matrix products then run in float32 (6e-7 off).
    """
    dtypes = importlib.import_module("keras.src.backend.common.dtypes")
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
