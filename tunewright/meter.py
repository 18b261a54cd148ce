"""What one run of a stage takes of the machine, by the operating system's own counters.

Processor seconds are those of the stage and of every child that it has waited for (getrusage). Where the processor
counts its own energy (RAPL, https://www.kernel.org/doc/html/latest/power/powercap/powercap.html) and the counters may
be read, the energy of the stage is the machine's, times the stage's share of all busy processor seconds meanwhile: two
stages side by side divide it, and an otherwise idle machine is wholly theirs. Nothing here is an estimate in watts:
`tunewright.cost` makes those, from params, when it is asked.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")
SAMPLE_SECONDS = 60.0
"""RAPL's counters begin anew after some 10 minutes of full load at the soonest: so often they are looked at."""


class Meter:
    """Begins when it is made."""

    def __init__(self, rapl: Path = RAPL) -> None:
        self._began = time.perf_counter()
        self._counters = {zone: (now, now) for zone, now in _packages(rapl).items()}
        self._microjoules = 0
        self._busy = _busy_seconds()
        self._gpus = _gpu_joules()
        self._rapl, self._lock = rapl, threading.Lock()
        if self._counters:
            threading.Thread(target=self._watch, daemon=True, name="meter").start()

    def read(self, processes: int = 1) -> dict[str, Any]:
        """What was taken so far: wall_seconds, cpu_seconds, gpu_seconds; cpu_joules and gpu_joules where they were
        counted, else None.

        processes: how many share the work; each has a GPU of its own where there are GPUs.
        """
        wall = time.perf_counter() - self._began
        cpu = cpu_seconds()
        gpus = _gpus_in_use(processes)
        return {
            "wall_seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "gpu_seconds": round(wall * gpus, 3),
            "cpu_joules": self._cpu_joules(cpu),
            "gpu_joules": self._gpu_joules(gpus),
        }

    def _watch(self) -> None:
        while True:
            time.sleep(SAMPLE_SECONDS)
            self._add()

    def _add(self) -> None:
        """Add what each counter has grown by; one that began anew has gone by its highest value."""
        with self._lock:
            found = _packages(self._rapl)
            for zone, (first, last) in self._counters.items():
                now = found.get(zone, last)
                grown = now - last if now >= last else now + _highest(self._rapl / zone) - last
                self._microjoules += grown
                self._counters[zone] = (first, now)

    def _cpu_joules(self, cpu: float) -> float | None:
        busy_now = _busy_seconds()
        if not self._counters or self._busy is None or busy_now is None:
            return None
        self._add()
        busy = busy_now - self._busy
        share = min(1.0, cpu / busy) if busy > 0 else 1.0
        return round(self._microjoules / 1e6 * share, 3)

    def _gpu_joules(self, gpus: int) -> float | None:
        """Only where all GPUs of the machine are this stage's: a counter is a GPU's, not a process's."""
        if not gpus or len(self._gpus) != gpus:
            return None
        now = _gpu_joules()
        return round(sum(now[gpu] - before for gpu, before in self._gpus.items()), 3) if len(now) == gpus else None


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended and were waited for, since they began."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _packages(rapl: Path) -> dict[str, int]:
    """Microjoules that each processor package has counted; nothing where that may not be read.

    Zones below a package (cores, memory) are parts of it or are counted by `tunewright.cost` as memory.
    """
    try:
        zones = [zone for zone in rapl.glob("intel-rapl:*") if zone.name.count(":") == 1]
        return {
            zone.name: int((zone / "energy_uj").read_text())
            for zone in sorted(zones)
            if (zone / "name").read_text().startswith("package")
        }
    except (OSError, ValueError):
        return {}


def _highest(zone: Path) -> int:
    return int((zone / "max_energy_range_uj").read_text())


def _busy_seconds() -> float | None:
    """Of all processors of this machine since it started, in user and system mode; None on another system."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[1:8])
    return float(user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _gpu_joules() -> dict[int, float]:
    """Joules that each GPU of NVIDIA has counted, by its number; nothing without a driver or its library."""
    if not Path("/dev/nvidiactl").exists():
        return {}
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in range(pynvml.nvmlDeviceGetCount())]
        return {gpu: pynvml.nvmlDeviceGetTotalEnergyConsumption(one) / 1000 for gpu, one in enumerate(handles)}
    except Exception:  # no library, or a GPU that does not count: `cost.gpu_watts` stands in
        return {}


def _gpus_in_use(processes: int) -> int:
    """GPUs that PyTorch works on: in this process, or one in each process that shares the work."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    if processes > 1:
        return min(processes, int(torch.cuda.device_count()))
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_allocated(gpu) > 0 for gpu in range(torch.cuda.device_count()))
