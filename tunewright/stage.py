"""`run_stage`: the whole command line of a stage.

    python -m stages.tokenize

A stage is a plain function `run` of its inputs, its params and its output paths. What it needs stands in its
type hints, and `run_stage` builds it from params.yaml:

    paths: TokenizePaths                              a `Paths` class: what it reads and what it writes
    params: TokenizeParams                            the stage's own section
    task: TaskType                                    the task type that `task.type` names
    seed: Annotated[int, Key("seed")]                 one single key, of the top level or of another section

Beside the result it leaves the run's own story in `.tunewright/runs/STAGE.json` (ignored by git, unknown to
DVC): outcome, message, seconds, peak memory, and what it took of processors. Whoever started the stage reads that,
never DVC's text. What a message or a traceback quotes of the data is masked: no personal value and no secret leaves
the data files.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict

from tunewright.errors import EXIT_CRASH, EXIT_DISK_FULL, EXIT_STOPPED, UserError
from tunewright.files import no_space, write_json
from tunewright.meter import Meter
from tunewright.params import Params, Section, load_params
from tunewright.report import Report

STATE = Path(".tunewright")
PARENT_VARIABLE = "TUNEWRIGHT_PARENT"
STAGE_VARIABLE = "TUNEWRIGHT_STAGE"
PROGRESS_SECONDS = 1.0

# Telemetry of every library is off, and no stage talks to a hub unless its params name a hub id.
QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
}

# How long a thread of PyTorch's OpenMP spins before it sleeps. By default that is so long that a second busy
# process halves the speed of training; none at all costs a tenth on a free machine (docs/decisions/0005).
SPIN = {"GOMP_SPINCOUNT": "10000"}

MEMORY_HINT = (
    "lower per_device_train_batch_size (raise gradient_accumulation_steps to match) or max_length, "
    "or set gradient_checkpointing: true"
)
SPACE_HINT = (
    "Free some space, then run again: what was there is still there, and a training goes on from its checkpoint"
)

Dep = Annotated[Path, "dep"]
"""A path that the stage reads: a `deps` entry of dvc.yaml."""
Out = Annotated[Path, "out"]
"""A path that the stage writes: an `outs`, `metrics` or `plots` entry of dvc.yaml."""


@dataclass(frozen=True)
class Key:
    """Marks an argument of `run` as one single key of params.yaml, by its dotted name."""

    name: str


class Paths(BaseModel):
    """The base of a stage's paths: each field a `Dep` or an `Out`, named by a key of `paths:`, or `STAGE_report`
    for another stage's report. A stage's own report is written by `run_stage`."""

    model_config = ConfigDict(frozen=True)


_told: dict[str, Any] = {}


def tell(**facts: Any) -> None:
    """Add to the story of this stage's run what belongs to the run and not to its content, such as its speed."""
    _told.update(facts)


def run_file(stage: str) -> Path:
    """Where the story of a stage's latest run stands."""
    return STATE / "runs" / f"{stage}.json"


def progress_file(stage: str) -> Path:
    """Where a stage that is at work tells how far it has come."""
    return STATE / "progress" / f"{stage}.json"


_progress_told = 0.0


def tell_progress(fraction: float, line: str, last: bool = False) -> None:
    """Tell how far this stage has come, for whoever started it to show: at most once in PROGRESS_SECONDS, and the last
    one always. `run` names who started it, so that nobody takes it for the progress of another run.

    fraction: from 0 to 1.   line: without any value of a row.
    """
    global _progress_told
    stage = os.environ.get(STAGE_VARIABLE)
    if stage is None or not (last or time.monotonic() - _progress_told >= PROGRESS_SECONDS):
        return
    _progress_told = time.monotonic()
    told = {"run": os.environ.get(PARENT_VARIABLE, ""), "fraction": round(fraction, 4), "line": line}
    write_json(progress_file(stage), told)


def arguments(run: Callable[..., Report], params: Params) -> dict[str, Any]:
    """Build the arguments of a stage's `run` from its type hints."""
    built: dict[str, Any] = {}
    for name, hint in get_type_hints(run, include_extras=True).items():
        if name == "return":
            continue
        key = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Key)), None)
        if get_origin(hint) is Annotated and key is not None:
            built[name] = params.value(key.name)
        elif isinstance(hint, type) and issubclass(hint, Paths):
            built[name] = hint(**{field: params.path(field) for field in hint.model_fields})
        elif isinstance(hint, type) and issubclass(hint, Section):
            built[name] = next(value for value in dict(params).values() if isinstance(value, hint))
        else:
            from tunewright.task import load_task

            built[name] = load_task(params.task)
    return built


def run_stage(run: Callable[..., Report]) -> None:
    """Run one stage as a process of its own, and exit with its status.

    Exit status
        0  done   1  a defect of ours, with its traceback   2  bad input   3  a closed gate
        4  another machine did not answer   5  no space left
        130  stopped by SIGINT or SIGTERM, with nothing half-written
    """
    stage = Path(inspect.getfile(run)).stem
    started, meter = time.perf_counter(), Meter()
    story: dict[str, Any] = {"stage": stage, "outcome": "ran", "message": "", "work_seconds": 0.0}
    status = 0
    os.environ.update({name: os.environ.get(name, value) for name, value in (QUIET | SPIN).items()})
    # `python -m` knows this module as __main__; without its own name too, load_params would import a second copy.
    sys.modules[f"stages.{stage}"] = sys.modules["__main__"]
    params: Params | None = None
    run_file(stage).unlink(missing_ok=True)  # a killed stage must not be taken for the run before it
    progress_file(stage).unlink(missing_ok=True)
    os.environ[STAGE_VARIABLE] = stage  # the processes that it starts speak for it
    end_with_parent()
    # Both by name: a shell starts what it puts in the background with SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        params = load_params()
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
            os.environ[variable] = str(params.num_threads)
        with sole(stage):
            work = time.perf_counter()
            report = run(**arguments(run, params))
            report.write(params.path(f"{stage}_report"))
            story["work_seconds"] = round(time.perf_counter() - work, 3)
            story |= _told
    except UserError as error:
        story.update(outcome=error.outcome, message=_masked(str(error), params))
        status = error.exit_status
        print(f"\n{stage}: {story['message']}", file=sys.stderr)
    except KeyboardInterrupt:
        story.update(outcome="stopped", message="stopped by a signal")
        status = EXIT_STOPPED
    except Exception as error:
        status = EXIT_CRASH
        if _out_of_memory(error):
            story.update(outcome="out_of_memory", message=f"out of memory; {MEMORY_HINT}")
            print(f"\n{stage}: {story['message']}", file=sys.stderr)
        elif no_space(error):
            status = EXIT_DISK_FULL
            story.update(outcome="disk_full", message=_masked(f"no space left ({error}). {SPACE_HINT}", params))
            print(f"\n{stage}: {story['message']}", file=sys.stderr)
        else:
            story.update(outcome="crash", message=_masked(f"{type(error).__name__}: {error}", params))
            print(_masked(traceback.format_exc(), params), end="", file=sys.stderr)
    story.update(process_seconds=round(time.perf_counter() - started, 3), peak_memory_mb=peak_memory_mb())
    story.update(usage=meter.read(story.get("processes", 1)))
    with suppress(OSError):  # where even that has no space, the exit status tells
        write_json(run_file(stage), story)
    sys.stdout.flush()
    sys.stderr.flush()
    # Torch and Great Expectations take up to a second to tear down, and all that this process owns is on the disk.
    os._exit(status)


@contextmanager
def sole(name: str) -> Iterator[None]:
    """Hold the lock of that name (a stage's), so that a survivor of a killed run shares no output with a new one."""
    path = STATE / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            print(f"{name}: waiting for process {stream.read().strip()}, which runs it", file=sys.stderr)
            fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        stream.truncate()
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def end_with_parent() -> None:
    """End this process's group when the process that started it is gone: a killed flow can't end its children."""
    named = os.environ.get(PARENT_VARIABLE)
    if not named:
        return
    pid, created = named.split(":")

    def watch() -> None:
        import psutil

        while True:
            try:
                process = psutil.Process(int(pid))
                same = abs(process.create_time() - float(created)) < 1.0
                alive = same and process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _masked(text: str, params: Params | None) -> str:
    """The text without personal data and secrets, those of the user's own patterns too.

    Imported here, and no dep of the stages in dvc.yaml: it shapes what is said of a failure, never an output.
    """
    from tunewright.masking import masked

    return masked(text, getattr(getattr(params, "prepare", None), "privacy", None))


def _out_of_memory(error: Exception) -> bool:
    """PyTorch has a class of its own on a GPU, and on a CPU a RuntimeError that says so. One process of several that
    is killed is killed for lack of memory, as likely as not (tunewright/processes.py)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or str(error).endswith(f"exit status {-signal.SIGKILL:d}")
    )


def peak_memory_mb() -> int:
    """Of this process alone, so far: on Linux ru_maxrss begins with that of the process that started it."""
    import resource

    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if own is None else own) // 1024
