"""The section `cost` of params.yaml: what a run took of electricity, and what that emitted.

    kWh    = PUE · (joules of processor + joules of GPU + joules of memory) / 3.6e6
    g CO₂e = kWh · carbon intensity

Joules are counted where the machine counts them (`tunewright.meter`); else they are seconds · watts, which is
CodeCarbon's way too (https://mlco2.github.io/codecarbon, Methodology), and so are the defaults:

    watts_per_cpu_core          4 W a thread: DEFAULT_POWER_PER_CORE of codecarbon/core/cpu.py, for a processor that its
                                list lacks; of busy seconds, without a floor, as its process mode has it
    watts_per_gb_memory         0.375 W: 3 W for each 8 GB (CodeCarbon 2; version 3 counts memory slots)
    carbon_intensity_g_per_kwh  475 g: the world's average (IEA, Global Energy & CO2 Status Report 2019), which
                                CodeCarbon falls back on
    pue                         1.0: no overhead of a data centre

Such an estimate is off by a factor of two as easily as not. What is left out: disks, network, the making of machines.

No stage reads the section, so an edit here makes nothing run again.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from tunewright.params import Section

JOULES = 3.6e6
"""Of a kWh."""


class CostParams(Section):
    """What electricity is estimated by, where nothing counts it."""

    watts_per_cpu_core: float = Field(default=4.0, ge=0, le=1000, description="of a busy processor core")
    watts_per_gb_memory: float = Field(default=0.375, ge=0, le=100, description="of a stage's peak memory")
    gpu_watts: float | None = Field(default=None, ge=0, le=10_000, description="of one GPU at work")
    carbon_intensity_g_per_kwh: float = Field(default=475.0, ge=0, le=5000, description="of the electricity")
    pue: float = Field(default=1.0, ge=1, le=10, description="electricity of the data centre over that of its machines")


class Usage(BaseModel):
    """What a run of a stage took: seconds of the clock, of processor cores and of GPUs, and its peak of memory.

    `cpu_joules`, `gpu_joules`: as the machine counted them; None where it did not.
    """

    model_config = ConfigDict(frozen=True)

    wall_seconds: float
    cpu_seconds: float
    gpu_seconds: float = 0.0
    memory_mb: float = 0.0
    cpu_joules: float | None = None
    gpu_joules: float | None = None


class Cost(BaseModel):
    """What that amounts to. `gpu_kwh` is None where a GPU was used and neither counted nor given watts: then `kwh` and
    `co2_grams` are without it. `counted` names what the machine itself counted."""

    model_config = ConfigDict(frozen=True)

    hours: float
    cpu_hours: float
    gpu_hours: float
    cpu_kwh: float
    memory_kwh: float
    gpu_kwh: float | None
    kwh: float
    co2_grams: float
    counted: list[str]


def cost(usage: Usage, params: CostParams) -> Cost:
    """What one run of a stage cost."""
    counted = [name for name in ("cpu", "gpu") if getattr(usage, f"{name}_joules") is not None]
    cpu = usage.cpu_seconds * params.watts_per_cpu_core if usage.cpu_joules is None else usage.cpu_joules
    memory = usage.wall_seconds * usage.memory_mb / 1000 * params.watts_per_gb_memory
    gpu = usage.gpu_joules
    if gpu is None and (params.gpu_watts is not None or not usage.gpu_seconds):
        gpu = usage.gpu_seconds * (params.gpu_watts or 0.0)
    scale = params.pue / JOULES
    kwh = (cpu + memory + (gpu or 0.0)) * scale
    return Cost(
        hours=usage.wall_seconds / 3600,
        cpu_hours=usage.cpu_seconds / 3600,
        gpu_hours=usage.gpu_seconds / 3600,
        cpu_kwh=cpu * scale,
        memory_kwh=memory * scale,
        gpu_kwh=None if gpu is None else gpu * scale,
        kwh=kwh,
        co2_grams=kwh * params.carbon_intensity_g_per_kwh,
        counted=counted,
    )


def total(costs: Iterable[Cost]) -> Cost:
    """Of several runs: sums; counted is what was counted in each of them."""
    found = list(costs)
    sums = {
        name: sum(getattr(one, name) for one in found)
        for name in ("hours", "cpu_hours", "gpu_hours", "cpu_kwh", "memory_kwh", "kwh", "co2_grams")
    }
    gpus = [one.gpu_kwh for one in found]
    known = [gpu for gpu in gpus if gpu is not None]
    counted = [name for name in ("cpu", "gpu") if found and all(name in one.counted for one in found)]
    return Cost(**sums, gpu_kwh=sum(known) if len(known) == len(gpus) else None, counted=counted)
