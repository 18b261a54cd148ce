"""The `tunewright` command.

Heavy libraries are imported inside the commands that use them: `tunewright check` must answer at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import typer
from rich.text import Text

from flows.console import console
from tunewright.errors import EXIT_STOPPED, Unreachable, UserError

RUN = "Run the recipe"
DATA = "Your data"
LOOK = "Look before you run"
STAND = "Schedules, and a page to watch runs"
CHAMPION = "Champion and challenger"
PUBLISH = "Give it away"

app = typer.Typer(
    help="Declarative fine-tuning: edit params.yaml, then `tunewright run`.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tunewright {version('tunewright')}")
        raise typer.Exit


# Of what answers: predict, score and serve-model.
OfModel = Annotated[
    Path | None, typer.Option("--model", help="An exported model's folder; else the champion's, or paths.export.")
]
OfRevision = Annotated[
    str | None, typer.Option("--revision", help="A branch, tag, commit or `champion`: its exported model and params.")
]


@app.callback()
def main(
    _wanted: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Everything works on the project in the working folder: its params.yaml, dvc.yaml and stages."""
    sys.path.insert(0, str(Path.cwd()))


@app.command(rich_help_panel=DATA)
def init(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file of rows, or a folder of texts.")],
    name: Annotated[str | None, typer.Option(help="Of the folder under data/raw; the file's, if not given.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of texts.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column of labels, or of a score.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="csv, jsonl, parquet, …: a file of tunewright/sources/.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="As Python calls it: utf-8, cp1252, utf-16, …")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Between the fields of a line; \\t for a tab.")] = None,
    quoting: Annotated[
        Literal["minimal", "none"] | None, typer.Option(help="minimal, or none: quotes are plain characters.")
    ] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="Whether the first line names the columns.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Of the data.")] = None,
    model_name_or_path: Annotated[
        str | None, typer.Option(help="The base model: package:…, ./folder, or a hub id.")
    ] = None,
    model_revision: Annotated[str | None, typer.Option(help="The 40-digit commit of a hub id.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Although params.yaml holds edits; a copy is kept.")] = False,
) -> None:
    """Look at a data file, copy it, and write a params.yaml worth running, each guess with its reason."""
    from flows.init import Wishes, init

    with _told():
        wishes = Wishes(
            name=name,
            text_column=text_column,
            label_column=label_column,
            format=format_,
            encoding=encoding,
            delimiter=delimiter,
            quoting=quoting,
            header=header,
            license=license_,
            model_name_or_path=model_name_or_path,
            model_revision=model_revision,
            force=force,
        )
        console.print(Text(init(data, wishes)))


@app.command(rich_help_panel=DATA)
def suggest_contract(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="A raw file; without one, what ingest has written.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Put it into params.yaml.")] = False,
) -> None:
    """Propose Great Expectations for the data contract, each with what was observed."""
    from flows.contract import suggest

    with _told():
        typer.echo(suggest(data, write))


@app.command(rich_help_panel=RUN)
def run(
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Stages at once.")] = 2,
    stage_timeout: Annotated[
        float | None, typer.Option("--stage-timeout", min=0.1, help="Seconds after which a stage is ended.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Of recipes/, in a clone of its own: runs/NAME. Yours stays as it is."),
    ] = None,
) -> None:
    """Run what changed, through the Prefect flow; nothing else is run again."""
    from tunewright.stage import sole

    if recipe is not None:
        from flows import recipe as recipes

        timeout = [] if stage_timeout is None else [f"--stage-timeout={stage_timeout}"]
        with _told(stages=True):
            raise typer.Exit(recipes.run(recipe, [f"--jobs={jobs}", *timeout]))
    with _ending(), _told(stages=True), sole("run"):
        _run(jobs, stage_timeout)


def _run(jobs: int, stage_timeout: float | None) -> None:
    from flows import asking, repair, summary
    from flows import console as progress
    from tunewright.params import load_params

    if (names := asking.up_to_date()) is None:
        load_params()
        repair.before_a_run()
        nodes, changed = asking.when_free(asking.plan, progress.note)
        names = None if changed else [node.name for node in nodes]
    if names is not None:
        for name in names:
            progress.ended(name, "Unchanged", "unchanged")
        console.print(f"\nNothing to run: all {len(names)} stages are up to date.")
        summary.success(console)
        return

    with _server() as ready:
        from flows.reproduce import last_run, reproduce

        ready()
        state: Any = reproduce(jobs=jobs, stage_timeout_seconds=stage_timeout, return_state=True)
    told = last_run()
    if told["stages"]:
        states = [stage["state"] for stage in told["stages"]]
        console.print(f"\n{summary.counted(states)}, in {told['seconds']:.1f} s")
    if state.is_completed():
        summary.success(console)
        return
    if not told["stages"]:
        console.print(Text(state.message or "the flow failed", style="red"))
    raise typer.Exit(summary.failure(console, told["stages"]))


@app.command(rich_help_panel=RUN)
def join() -> None:
    """Take part in the training of another machine: finetune.num_machines and docs/machines.md."""
    from flows.join import join

    with _ending(), _told(stages=True):
        join()


@app.command(rich_help_panel=RUN)
def sweep(
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUES", help="1e-5,1e-4 or loguniform(1e-5,1e-3); once for each key."),
    ],
    name: Annotated[str | None, typer.Option(help="Of the sweep; by default that of its keys.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many; without, every combination.")] = None,
    sampler: Annotated[
        Literal["grid", "random", "tpe"] | None, typer.Option(help="grid, or with --trials Optuna's random or tpe.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="STAGE.KEY.KEY… of a report; by default the task's own on validation.")
    ] = None,
    direction: Annotated[Literal["maximize", "minimize"] | None, typer.Option(help="Of a metric of your own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampler; by default that of params.yaml.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at once.")] = 1,
    trial_timeout: Annotated[
        float | None, typer.Option("--trial-timeout", min=0.1, help="Seconds after which a trial is ended.")
    ] = None,
    runner: Annotated[
        Literal["threads", "dask", "ray"], typer.Option(help="dask, ray: trials on the machines of a cluster.")
    ] = "threads",
    address: Annotated[str | None, typer.Option(help="Of Dask's scheduler or Ray's head.")] = None,
    apply_best: Annotated[bool, typer.Option("--apply-best", help="Write the best values into params.yaml.")] = False,
) -> None:
    """Try values of any params, each in a DVC experiment of its own; what has been tried is not run again."""
    from flows import ranking
    from flows.search import prepare

    with _ending(), _told(stages=True):
        results = prepare(settings, name, trials, sampler, metric, direction, seed).results
        with _server() as ready:
            from flows.sweep import sweep as flow

            ready()
            state: Any = flow(
                settings,
                name=name,
                trials=trials,
                sampler=sampler,
                metric=metric,
                direction=direction,
                seed=seed,
                jobs=jobs,
                trial_timeout_seconds=trial_timeout,
                task_runner=runner,
                address=address,
                return_state=True,
            )
        if not state.is_completed():
            raise UserError(state.message or "the flow failed")
        console.print(ranking.table(results))
        console.print(Text(ranking.apply_best(results) if apply_best else ranking.advice(results)))


@app.command(rich_help_panel=RUN)
def score(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="New rows: a file or folder, without labels.")],
    output: Annotated[Path, typer.Option("--output", help="The Parquet file to write.")],
    model: OfModel = None,
    revision: OfRevision = None,
    source: Annotated[str | None, typer.Option(help="Of ingest.sources: how DATA is read; else the first.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Of DATA; else by its suffix.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column of texts; else the source's.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column of ids; else the source's, where it is.")] = None,
) -> None:
    """Score new rows with the exported model; what was scored before is not scored again."""
    from flows.scoring import Wish
    from flows.which_model import score_with, told

    with _told():
        wish = Wish(data, output, model, source, format_, text_column, id_column)
        for line in told(*score_with(wish, revision)):
            console.print(Text(line))


@app.command(rich_help_panel=RUN)
def predict(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]…", help="Else --file, or standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Texts, one a line.")] = None,
    model: OfModel = None,
    revision: OfRevision = None,
) -> None:
    """Ask the exported model for single texts: JSON, a line a text."""
    from flows.predict import lines_of, load

    with _told(), ExitStack() as stack:
        if texts and file is not None:
            raise UserError("found texts and --file; expected one of them.")
        if texts:
            some: Iterable[list[str]] = [texts]
        elif file is not None:
            some = lines_of(stack.enter_context(_opened(file)).fileno(), str(file))
        else:
            some = lines_of(sys.stdin.fileno(), "standard input")
        predictor = load(model, revision)
        for lines in some:
            for answer in predictor.predict(lines):
                typer.echo(json.dumps(answer, ensure_ascii=False))


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(f"--file: {file}: {error.strerror}. Expected a file of texts, one a line.") from error


@contextmanager
def _server() -> Iterator[Callable[[], None]]:
    """A Prefect server in the environment, while the block lasts: the one that it names, the standing one, or one of
    our own. It gives what waits until that one answers: heavy imports go on meanwhile.

    Raises
        Unreachable  when it goes away.
    """
    from flows.server import Server, answers, settings, standing

    url = standing()
    own = Server() if url is None and not os.environ.get("PREFECT_API_URL") else None
    if own is not None:
        os.environ.update(settings(own.api_url))
    elif not os.environ.get("PREFECT_API_URL"):
        os.environ.update(settings(f"{url}/api"))
        console.print(f"Watch it: {url}")
    # The console is ours; Prefect's own lines go to its pages.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

    def ready() -> None:
        if own is not None:
            own.wait()
            console.print(f"Watch it while it runs: {own.ui_url}")

    try:
        yield ready
    except (UserError, typer.Exit):
        raise
    except Exception as error:
        if answers(os.environ["PREFECT_API_URL"]):
            raise
        raise Unreachable(
            "Prefect's server went away during the run. What the stages finished is recorded: run again."
        ) from error
    finally:
        from flows.reproduce import drain

        drain()
        if own is not None:
            own.stop()


@contextmanager
def _ending() -> Iterator[None]:
    """End the process with the block, its exit status kept."""
    status = 0
    try:
        yield
    except typer.Exit as ended:
        status = ended.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    # Prefect would wait at exit, a minute and more, for a server that is gone; all that is ours is on the disk.
    os._exit(status)


@app.command(rich_help_panel=DATA)
def accept(
    revision: Annotated[
        str | None, typer.Argument(metavar="[REV]", help="A branch, tag or commit; without one, the data as it stands.")
    ] = None,
) -> None:
    """Make this data what the next data is compared with, for drift."""
    from flows.accept import accept

    with _told():
        console.print(Text(accept(revision)))


@app.command(rich_help_panel=LOOK)
def why() -> None:
    """Tell which file or param will make which stage run again."""
    from flows import asking

    with _told():
        if (names := asking.up_to_date()) is not None:
            console.print(f"Nothing would run: all {len(names)} stages are up to date.")
            return
        from flows.graph import followers

        nodes, changed = asking.plan()
        following = followers(nodes, changed)
        for node in nodes:
            if node.name in changed:
                first, *others = changed[node.name]
                console.print(Text.assemble((f"{node.name:<12}", "bold"), " runs: ", first))
                for reason in others:
                    console.print(Text(f"{'':<12}       {reason}"))
            if (above := following.get(node.name)) is not None:
                line = f"runs if the output of {', '.join(above)} changes"
                console.print(Text.assemble((f"{node.name:<12}", "bold"), " ", (line, "dim")))
        unchanged = len(nodes) - len(changed) - len(following)
        if unchanged == len(nodes):
            console.print(f"Nothing would run: all {len(nodes)} stages are up to date.")
        elif unchanged:
            console.print(f"\n{unchanged} of {len(nodes)} stages are up to date.")


@app.command(rich_help_panel=LOOK)
def plan(
    calibrate: Annotated[
        bool | None,
        typer.Option("--calibrate/--no-calibrate", help="Run some real steps; by default where all for it is here."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Real steps, after a warm-up.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell what a run would do and take: stages, rows, weights, memory, disk, time."""
    from flows import plan as planning
    from flows.plan_page import show
    from tunewright.files import canonical_json

    with _told():
        found = planning.plan(calibrate, steps)
        if as_json:
            typer.echo(canonical_json(found), nl=False)
        else:
            show(console, found)


@app.command(rich_help_panel=LOOK)
def card(
    output: Annotated[
        Path | None, typer.Option("--output", help="A folder for the card, the data sheet and the report.")
    ] = None,
) -> None:
    """Show the model card, or write it, with what the run took of electricity joined in."""
    from flows.card import card

    with _told():
        typer.echo(card(output))


@app.command(rich_help_panel=LOOK)
def check() -> None:
    """List every fault of params.yaml at once, and whether the files that it names are there."""
    from flows.check import faults

    with _told():
        found = faults()
        if found:
            raise UserError("params.yaml: " + "\n  ".join([f"{len(found)} faults" if found[1:] else "1 fault", *found]))
        console.print("params.yaml: no faults.")


@app.command(rich_help_panel=LOOK)
def verify(
    published: Annotated[
        Path | None, typer.Option("--published", help="A published folder, which is verified in the project's place.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="In PEM: whose signature the folder must bear.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Hash every byte from the raw data to the export again, and name each that is not as recorded; status 3."""
    from flows.published import VerifiedFolder, verify_published
    from flows.verify import Verified, verify
    from tunewright.errors import EXIT_GATE_CLOSED
    from tunewright.files import canonical_json

    with _told():
        if public_key is not None and published is None:
            raise UserError("--public-key: found without --published; a published folder is what is signed.")
        found: Verified | VerifiedFolder = verify() if published is None else verify_published(published, public_key)
        if as_json:
            typer.echo(canonical_json(found.as_json()), nl=False)
        else:
            console.print(Text(found.summary()))
        if found.mismatches:
            raise typer.Exit(EXIT_GATE_CLOSED)


@app.command(rich_help_panel=PUBLISH)
def publish(
    signing_key: Annotated[
        Path | None, typer.Option("--signing-key", help="A private key in PEM that signs the folder.")
    ] = None,
) -> None:
    """Verify all, then write published/: the model, its card, and the proof of where every byte came from."""
    from flows.publish import publish

    with _told():
        console.print(Text(publish(signing_key)))


@app.command(rich_help_panel=PUBLISH)
def push_to_hub(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="ORGANISATION/NAME; made where there is none.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    revision: Annotated[str, typer.Option("--revision", help="A branch; made where there is none.")] = "main",
) -> None:
    """Push the published folder to the Hugging Face Hub, or to what HF_ENDPOINT names, in one commit."""
    # Read when the library is imported; what of ours went before has not imported it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from flows.push import push, told

    with _told():
        console.print(Text(told(push(repo_id, private, revision))))


@app.command(rich_help_panel=CHAMPION)
def compare(
    first: Annotated[str, typer.Argument(metavar="[A]", help="A branch, tag or commit.")] = "champion",
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The same; without one, the model as it stands.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Hold the model of B against that of A on B's rows of test; status 3 where it may be worse than tolerated."""
    from flows.comparing import compare, revision
    from flows.comparison_page import show
    from tunewright.errors import EXIT_GATE_CLOSED
    from tunewright.files import canonical_json

    with _told():
        found = compare(revision(first), revision(second))
        if as_json:
            typer.echo(canonical_json(found.model_dump(mode="json")), nl=False)
        else:
            show(console, found)
        raise typer.Exit(0 if found.blessed else EXIT_GATE_CLOSED)


@app.command(rich_help_panel=CHAMPION)
def promote(
    revision: Annotated[
        str | None, typer.Argument(metavar="[REV]", help="A branch, tag or commit; without one, HEAD.")
    ] = None,
) -> None:
    """Make a model the champion, by a git tag; nothing runs again."""
    from flows.promotion import promote

    with _told():
        console.print(Text(promote(revision)))


@app.command(rich_help_panel=CHAMPION)
def rollback() -> None:
    """Make the champion before this one champion again, by a new git tag."""
    from flows.promotion import rollback

    with _told():
        console.print(Text(rollback()))


@app.command(rich_help_panel=RUN)
def repair() -> None:
    """Mend what a killed process, a full disk or a merge has left of DVC's own files."""
    from flows.repair import repair
    from tunewright.stage import sole

    with _told(), sole("run"), sole("reproduce"):
        done = repair()
        console.print(Text("\n".join(done) if done else "Nothing to mend: dvc.lock and DVC's rwlock are good."))


@app.command(rich_help_panel=STAND)
def serve(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the server, on loopback.")] = 4200,
) -> None:
    """Keep a Prefect server and a worker until Ctrl-C, for schedules and to watch runs."""
    from flows.server import POOL, serving, worker

    with _told(stages=True), serving(port) as server, worker(server.api_url) as process:
        console.print(f"Prefect: {server.ui_url}   work pool: {POOL}   `tunewright deploy` registers prefect.yaml.")
        console.print("Ctrl-C stops the server and the worker.")
        status = process.wait()
        raise UserError(f"the worker ended with status {status}; see .tunewright/logs/prefect-worker.log.")


@app.command(rich_help_panel=STAND)
def serve_model(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; one that others reach needs a token.")
    ] = "127.0.0.1",
    max_batch_size: Annotated[int, typer.Option("--max-batch-size", min=1, max=1024, help="Texts at once.")] = 32,
    model: OfModel = None,
    revision: OfRevision = None,
) -> None:
    """Answer over HTTP with the exported classifier, and show a page to try texts on, until Ctrl-C."""
    from flows import model_service
    from flows.onnx_model import OnnxModel
    from flows.which_model import chosen

    with _told(), chosen(model, revision) as by:
        token = model_service.token_for(host)
        if by.bring is not None:
            by.bring()
        app = model_service.app_of(OnnxModel(by.folder, by.params), by, host, token, max_batch_size)
        model_service.serve(app, host, port, lambda url: console.print(f"{by.name}: {url}   Ctrl-C stops it."))


@app.command(rich_help_panel=STAND)
def deploy() -> None:
    """Register the deployments of prefect.yaml with the standing server."""
    import subprocess

    from flows.processes import child_environment
    from flows.server import make_pool

    with _told():
        _use_standing_server()
        make_pool()
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        raise typer.Exit(subprocess.run(command, env=child_environment(), check=False).returncode)


@app.command(rich_help_panel=STAND)
def notify(
    block: Annotated[str, typer.Argument(metavar="BLOCK", help="Of Prefect's, as TYPE/NAME: slack-webhook/team.")],
) -> None:
    """Tell of every run that fails, by a notification block of the standing server."""
    with _told():
        _use_standing_server()
        from flows.notify import notify

        console.print(Text(notify(block)))


def _use_standing_server() -> None:
    """Have the environment name the server that stands.

    Raises
        UserError  where none does.
    """
    from flows.server import settings, standing

    if not os.environ.get("PREFECT_API_URL"):
        if (url := standing()) is None:
            raise UserError("no server stands. Start one in another terminal: `tunewright serve`.")
        os.environ.update(settings(f"{url}/api"))


@contextmanager
def _told(stages: bool = False) -> Iterator[None]:
    """A user's mistake as its message alone, a signal as an ordinary end, both with an exit status of their own.

    stages: whether the command runs any, which a signal then has ended.
    """
    # Both by name: a shell starts what it puts in the background with SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except UserError as error:
        console.print(Text(str(error), style="red"))
        raise typer.Exit(error.exit_status) from error
    except KeyboardInterrupt:
        ended = "Stopped."
        if stages:
            from flows.summary import stopped

            ended = stopped()
        console.print(Text(ended))
        raise typer.Exit(EXIT_STOPPED) from None


if __name__ == "__main__":
    app()
