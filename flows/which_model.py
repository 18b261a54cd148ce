"""Which exported model scores new rows: a folder, that of a revision, the champion's, or the working folder's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flows import graph, registry
from flows.git import git
from flows.published import SBOM_FILE
from flows.scoring import MANIFEST, Scored, Wish, check_listed, listed_files, score
from tunewright.errors import UserError
from tunewright.files import write_text
from tunewright.params import PARAMS_FILE, Params, load_params

CHAMPION = "champion"


@dataclass(frozen=True)
class Chosen:
    """An exported model, and the params that it was made by. name: of what was chosen, for the user."""

    params: Params
    folder: Path
    name: str
    bring: Callable[[], None] | None = None
    """Brings the model, of which so far only the manifest is there."""


def score_with(wish: Wish, revision: str | None) -> tuple[Scored, str]:
    """Score, and tell by which model.   wish.model, revision: see `chosen`.

    Raises
        UserError  see `score` and `chosen`.
    """
    with chosen(wish.model, revision) as by:
        return score(replace(wish, model=by.folder), by.params, by.bring), by.name


@contextmanager
def chosen(model: Path | None, revision: str | None) -> Iterator[Chosen]:
    """The model that answers, while the block lasts.

    model: a folder, by the params that were published with it, where there are none by those of the working folder.
    revision: a branch, a tag, a commit or `champion`, whose export and params are taken from DVC's cache or remote.
    Neither: the champion where there is one, else the export that stands in the working folder, else that of HEAD, as
    in a fresh clone.

    Raises
        UserError  for a revision that git does not know or whose export DVC can't find.
    """
    if model is not None:
        if revision is not None:
            raise UserError("--model and --revision: found both; expected one of them.")
        yield Chosen(_params_with(model), model, str(model))
        return
    found = registry.champion() if revision in (None, CHAMPION) and _has_history() else None
    if found is not None:
        with _at(found.commit, f"the champion, {found.name}") as by:
            yield by
        return
    if revision == CHAMPION:
        raise UserError("there is no champion yet: `tunewright promote` makes one.")
    if revision is None:
        params = load_params()
        if (params.path("export") / MANIFEST).is_file() or not _has_history():
            yield Chosen(params, params.path("export"), str(params.path("export")))
            return
    revision = revision or "HEAD"
    with _at(registry.commit_of(revision), f"that of {revision}") as by:
        yield by


def _params_with(model: Path) -> Params:
    """The params that were published with a model, if its manifest lists them; else those of the working folder.

    Raises
        UserError  where they are not those that the manifest lists, or are of another version of Tunewright.
    """
    listed = listed_files(model) if (model / MANIFEST).is_file() else {}
    if PARAMS_FILE.name not in listed:
        return load_params()
    check_listed(model, PARAMS_FILE.name, listed)
    try:
        return load_params(model / PARAMS_FILE)
    except UserError as error:
        raise UserError(
            f"{error}\nThe model was published by a Tunewright that takes these params; {SBOM_FILE} names its version. "
            "Install that one."
        ) from error


@contextmanager
def _at(commit: str, told: str) -> Iterator[Chosen]:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_text(scratch / PARAMS_FILE, graph.read_at(PARAMS_FILE, commit))
        params = load_params(scratch / PARAMS_FILE)
        export = params.path("export")
        graph.fetch_at([export / MANIFEST], commit, scratch)
        yield Chosen(params, scratch / export, told, lambda: graph.fetch_at([export], commit, scratch))


def _has_history() -> bool:
    return bool(git("rev-parse", "--verify", "--quiet", "HEAD", check=False))


def told(scored: Scored, model: str) -> list[str]:
    """What came of it, in lines, without a value of any row."""
    if scored.unchanged:
        return [f"Nothing to do: {scored.output} was made of the same rows, model ({model}) and settings."]
    lines = [f"model: {model}", f"{scored.rows:,} rows scored → {scored.output}"]
    if scored.earlier:
        lines.append(f"{scored.earlier:,} of the rows were dealt with by an earlier call, which was stopped")
    if scored.predicted:
        shares = (f"{name} {count:,}" for name, count in sorted(scored.predicted.items(), key=lambda one: -one[1]))
        lines.append(f"predicted: {', '.join(shares)}")
    if scored.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(scored.rejected.items()))
        lines.append(f"{sum(scored.rejected.values()):,} rows rejected ({reasons}) → {scored.rejected_file}")
    return lines
