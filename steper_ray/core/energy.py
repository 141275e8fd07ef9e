"""The energy that this machine's GPUs and processors have used, by their own counters.

NVIDIA's driver (NVML) counts for each GPU that this process may use; Linux (RAPL, powercap) for each processor, which
root alone may read on most machines. Where neither can be read nothing is measured, and nothing is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, of all counters that can be read; what other programs use is counted too."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._counters = [*_processors(powercap), *_gpus()]
        self._start = [read() for read, _ in self._counters]

    def joules(self) -> float | None:
        """None where there is no counter. One that wrapped around once since the start is still right."""
        if not self._counters:
            return None
        used = 0.0
        for (read, wraps_at), start in zip(self._counters, self._start, strict=True):
            now = read()
            used += now - start + (wraps_at if now < start else 0.0)
        return used


#: A reading in joules, and the value after which it begins at 0 again.
_Counter = tuple[Callable[[], float], float]


def _processors(powercap: Path) -> list[_Counter]:
    """The packages of RAPL, not the parts of them that it counts as well ('intel-rapl:0:0')."""
    found: list[_Counter] = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue

        def read(file: Path = folder / "energy_uj") -> float:
            return int(file.read_text()) / 1e6

        try:
            read()
            found.append((read, int((folder / "max_energy_range_uj").read_text()) / 1e6))
        except (OSError, ValueError):
            continue
    return found


def _gpus() -> list[_Counter]:
    try:
        import pynvml
    except ImportError:
        return []
    found: list[_Counter] = []
    try:
        pynvml.nvmlInit()
        for device in _visible(pynvml):

            def read(device: Any = device) -> float:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1e3

            read()
            found.append((read, 0.0))
    except pynvml.NVMLError:
        return []
    return found


def _visible(pynvml: Any) -> list[Any]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdigit()
        else pynvml.nvmlDeviceGetHandleByUUID(name)
        for name in named.split(",")
        if name
    ]
