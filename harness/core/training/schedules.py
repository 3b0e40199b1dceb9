"""Learning-rate schedules: a factor on the learning rate as a function of the epoch.

Every schedule takes a linear warm-up and computes the rates of all steps of a training at once, in NumPy. The
frameworks receive them as inputs, so a schedule is the same in each of them and changing it compiles nothing.
A schedule's method `factor(epoch, epochs)` gets the time since the warm-up in epochs (fractional, one value
for each step) and the length of the training without the warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from harness.core.training.optimizers import Decay, Rate
from harness.core.validation import Range


@dataclass(frozen=True)
class Constant:
    """The same learning rate throughout, after the warm-up."""

    name: ClassVar[str] = "constant"
    warmup_epochs: Decay = 0.0

    def factor(self, epoch: npt.NDArray[np.float64], epochs: float) -> npt.NDArray[np.float64]:
        return np.ones_like(epoch)


@dataclass(frozen=True)
class Cosine:
    """From 1 to `final_fraction` along half a cosine. Loshchilov & Hutter 2017, eq. 5, without restarts."""

    name: ClassVar[str] = "cosine"
    warmup_epochs: Decay = 0.0
    final_fraction: Annotated[float, Range(min=0.0, max=1.0)] = 0.0

    def factor(self, epoch: npt.NDArray[np.float64], epochs: float) -> npt.NDArray[np.float64]:
        progress = np.minimum(epoch / max(epochs, 1e-12), 1.0)
        # math.cos, not np.cos: NumPy's vectorised cosine may differ in its last bit between processors
        half_wave = np.array([0.5 * (1 + math.cos(math.pi * p)) for p in progress])
        return self.final_fraction + (1 - self.final_fraction) * half_wave


@dataclass(frozen=True)
class Step:
    """Multiplied by `decay_factor` every `every_epochs` epochs."""

    name: ClassVar[str] = "step"
    warmup_epochs: Decay = 0.0
    every_epochs: Rate = 10.0
    decay_factor: Annotated[float, Range(min=0.0, max=1.0, exclusive_min=True)] = 0.1

    def factor(self, epoch: npt.NDArray[np.float64], epochs: float) -> npt.NDArray[np.float64]:
        return np.array([self.decay_factor ** math.floor(e / self.every_epochs) for e in epoch])


@dataclass(frozen=True)
class Exponential:
    """Multiplied by `decay_factor` per epoch, smoothly: decay_factor ** epoch."""

    name: ClassVar[str] = "exponential"
    warmup_epochs: Decay = 0.0
    decay_factor: Annotated[float, Range(min=0.0, max=1.0, exclusive_min=True)] = 0.95

    def factor(self, epoch: npt.NDArray[np.float64], epochs: float) -> npt.NDArray[np.float64]:
        return np.array([self.decay_factor**e for e in epoch])


Schedule = Constant | Cosine | Step | Exponential
"""All schedules: the `schedule` section of a configuration."""


def learning_rates(
    schedule: Schedule, learning_rate: float, epochs: int, steps_per_epoch: int
) -> npt.NDArray[np.float64]:
    """Return the learning rate of every step, float64 `[epochs, steps_per_epoch]`.

    A schedule's time starts when the linear warm-up (Goyal et al. 2017, section 2.2) ends. Step k of K of the
    warm-up runs at (k + 1) / K of the full rate, so that no step is wasted at rate 0.
    """
    total = epochs * steps_per_epoch
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total)
    after = np.arange(total - warmup, dtype=np.float64) / steps_per_epoch
    ramp = np.arange(1, warmup + 1, dtype=np.float64) / max(warmup, 1)
    factors = np.concatenate([ramp, schedule.factor(after, epochs - warmup / steps_per_epoch)])
    return (learning_rate * factors).reshape(epochs, steps_per_epoch)
