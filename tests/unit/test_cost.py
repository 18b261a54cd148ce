"""What a run takes of electricity: sums worked out by hand, counters in a folder of our own, and the real clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows import costs
from tunewright.cost import Cost, CostParams, Usage, cost, total
from tunewright.files import write_json
from tunewright.meter import Meter, cpu_seconds
from tunewright.params import load_params
from tunewright.stage import run_file

PARAMS = Path(__file__).parents[2] / "params.yaml"
ROUND = CostParams(
    watts_per_cpu_core=10.0, watts_per_gb_memory=0.5, gpu_watts=None, carbon_intensity_g_per_kwh=400.0, pue=1.5
)


def test_seconds_times_watts() -> None:
    # One hour of the clock, two cores all the time, 4 GB: 20 W + 2 W for an hour, times 1.5.
    found = cost(Usage(wall_seconds=3600, cpu_seconds=7200, memory_mb=4000), ROUND)
    assert (found.hours, found.cpu_hours, found.gpu_hours) == (1.0, 2.0, 0.0)
    assert found.cpu_kwh == pytest.approx(0.030)
    assert found.memory_kwh == pytest.approx(0.003)
    assert found.gpu_kwh == 0.0
    assert found.kwh == pytest.approx(0.033)
    assert found.co2_grams == pytest.approx(13.2)
    assert found.counted == []


def test_what_the_machine_counted_goes_before_watts() -> None:
    usage = Usage(wall_seconds=100, cpu_seconds=200, gpu_seconds=100, cpu_joules=36_000.0, gpu_joules=72_000.0)
    found = cost(usage, ROUND)
    assert found.cpu_kwh == pytest.approx(0.015)
    assert found.gpu_kwh == pytest.approx(0.030)
    assert found.counted == ["cpu", "gpu"]


def test_a_gpu_of_unknown_watts_is_left_out_and_said_to_be() -> None:
    usage = Usage(wall_seconds=3600, cpu_seconds=3600, gpu_seconds=3600)
    unknown = cost(usage, ROUND)
    known = cost(usage, ROUND.model_copy(update={"gpu_watts": 300.0}))
    assert unknown.gpu_kwh is None
    assert unknown.kwh == pytest.approx(0.015)
    assert known.gpu_kwh == pytest.approx(0.45)
    assert known.kwh == pytest.approx(0.465)
    assert "set cost.gpu_watts" in costs.line(unknown.model_dump())
    assert "set cost.gpu_watts" not in costs.line(known.model_dump())
    both = total([unknown, known])
    assert both.gpu_kwh is None
    assert both.kwh == pytest.approx(0.48)
    assert both.gpu_hours == 2.0


def test_the_sum_of_no_run_is_nothing() -> None:
    assert total([]) == Cost(
        hours=0, cpu_hours=0, gpu_hours=0, cpu_kwh=0, memory_kwh=0, gpu_kwh=0, kwh=0, co2_grams=0, counted=[]
    )


def zone(folder: Path, name: str, microjoules: int, kind: str = "package-0") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "name").write_text(f"{kind}\n")
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")


def test_energy_counters_are_added_also_where_one_began_anew(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", 999_000_000, "package-1")
    zone(tmp_path, "intel-rapl:0:0", 7, "core")
    zone(tmp_path, "intel-rapl:2", 7, "psys")
    meter = Meter(tmp_path)
    zone(tmp_path, "intel-rapl:0", 8_000_000)
    zone(tmp_path, "intel-rapl:1", 4_000_000, "package-1")  # past its highest value: 1 J + 4 J
    zone(tmp_path, "intel-rapl:0:0", 900_000_000, "core")
    zone(tmp_path, "intel-rapl:2", 900_000_000, "psys")
    meter._add()
    meter._add()  # nothing has grown since
    assert meter._microjoules == 8_000_000
    found = meter.read()["cpu_joules"]
    assert found is not None
    assert 0 < found <= 8.0  # the share of this process


def test_without_counters_there_are_seconds_only(tmp_path: Path) -> None:
    found = Meter(tmp_path).read()
    assert found["cpu_joules"] is None
    assert found["gpu_joules"] is None
    assert found["gpu_seconds"] == 0.0


def test_processor_seconds_of_children_count_once_they_have_ended() -> None:
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert cpu_seconds() - before >= 0.5


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which finetune took an hour and two core hours, evaluate a tenth of it, and report is not known."""
    monkeypatch.chdir(tmp_path)
    used = {"wall_seconds": 3600.0, "cpu_seconds": 7200.0, "gpu_seconds": 0.0, "cpu_joules": None, "gpu_joules": None}
    write_json(run_file("finetune"), {"usage": used, "peak_memory_mb": 0})
    tenth = {**used, "wall_seconds": 360.0, "cpu_seconds": 720.0}
    write_json(run_file("evaluate"), {"usage": tenth, "peak_memory_mb": 0})
    return tmp_path


def told(**states: str) -> dict:
    stages = []
    for stage, state in states.items():
        used = costs.usage(stage, state)
        stages.append({"stage": stage, "state": state, **({"usage": used.model_dump()} if used else {})})
    return costs.costs(stages, load_params(PARAMS))


@pytest.mark.usefixtures("project")
def test_this_run_and_the_model_all_in_all() -> None:
    found = told(finetune="Unchanged", evaluate="Ran", report="Restored")
    assert found["run"]["cpu_hours"] == pytest.approx(0.2)
    assert found["model"]["cpu_hours"] == pytest.approx(2.2)
    assert found["model"]["kwh"] == pytest.approx(2.2 * 4.0 / 1000)  # the default: 4 W a core
    assert found["unknown"] == ["report"]
    assert {stage: one["today"] for stage, one in found["stages"].items()} == {"finetune": False, "evaluate": True}


@pytest.mark.usefixtures("project")
def test_what_came_from_the_cache_has_no_cost_although_an_earlier_run_left_one() -> None:
    found = told(finetune="Restored")
    assert found["unknown"] == ["finetune"]
    assert found["run"]["kwh"] == found["model"]["kwh"] == 0


@pytest.mark.usefixtures("project")
def test_tokens_are_those_that_were_kept_times_the_epochs() -> None:
    assert costs.tokens_trained(load_params(PARAMS)) is None
    kept = {"train": {"tokens_kept": 1000}, "test": {"tokens_kept": 9}}
    write_json(Path("reports/tokenize.json"), {"splits": kept, "targets": {"train": {"tokens_kept": 500}}})
    write_json(Path("reports/finetune.json"), {"epochs": 2.5})
    assert costs.tokens_trained(load_params(PARAMS)) == 3750
