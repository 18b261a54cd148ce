"""`tunewright init`: look at a data file, and write a params.yaml worth running.

The file is copied to data/raw/NAME, and params.yaml as git has it is the template: every key stays, and what was
guessed has its reason beside it. What is written passes `tunewright check`, or nothing is written at all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from flows import draft as drafts
from flows.check import faults
from flows.draft import Draft, Split, chosen_split
from flows.edit import without_marks
from flows.guess import Labels, Roles, labels_of, roles
from flows.tally import Tally, tally
from tunewright.errors import UserError
from tunewright.files import atomic_file, atomic_folder, read_json, sha256_file, sha256_tree, write_json, write_text
from tunewright.params import PARAMS_FILE, load_params
from tunewright.profile import Profile, profile
from tunewright.sniff import Described, describe
from tunewright.stage import STATE

RAW = Path("data/raw")
KEPT = Path("params.before-init.yaml")
LAST = STATE / "init.json"  # what the last init wrote, and on which template
MIN_ROWS = 30
MIN_LABEL_ROWS = 50  # fewer, and a split may get no row of the label
MAX_REJECTED = 0.1
TRACKED_BY_GIT = 10_000_000  # bytes; more belongs to DVC


@dataclass(frozen=True)
class Wishes:
    """What the command line says; None: to be guessed."""

    name: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quoting: Literal["minimal", "none"] | None = None
    header: bool | None = None
    license: str | None = None
    model_name_or_path: str | None = None
    model_revision: str | None = None
    force: bool = False


def init(data: Path, wishes: Wishes) -> str:
    """Write params.yaml for a data file, copy the file, and tell what was guessed.

    Raises
        UserError  for a file that can't be used, for a guess that would be none, and for a params.yaml that holds
                   edits which git does not: then nothing has changed.
    """
    from ruamel.yaml import YAML

    template, dirty = _template(wishes.force)
    described, found = _read(data, wishes)
    try:
        described, found, what = _named(described, found, wishes)
        labels = labels_of(found.columns[what.label], given=wishes.label_column is not None)
    except UserError as error:
        raise UserError(f"{data}: {error}") from error
    seen = tally(described, found, what, labels)
    _check_rows(data, found, labels, seen)
    raw, path = _place(data, wishes.name)

    draft = Draft(YAML(typ="safe", pure=True).load(template))
    split = chosen_split(draft, found, what, seen)
    drafts.source(draft, described, what, labels, split, raw, path, wishes.license)
    drafts.contract(draft, found, seen)
    drafts.preparation(draft, what, labels, split, seen)
    drafts.model(draft, seen, split, wishes.model_name_or_path, wishes.model_revision)
    drafts.thresholds(draft, seen, labels, split)
    draft.set("report.title", f"{raw.name}: {', '.join(labels.names) if len(labels.names) < 6 else what.label}")
    drafts.card(draft, raw.name)
    reference = _drift_reference(draft, raw.name)
    _write(data, raw, raw / path, draft.text(template), reference)
    if dirty:
        write_text(KEPT, dirty)
    write_json(LAST, {"template": template, "written": sha256_file(PARAMS_FILE)})
    return _told(raw, raw / path, what, labels, found, seen, split, kept=bool(dirty))


def _template(force: bool) -> tuple[str, str]:
    """The params.yaml to start from, as git has it or as the last init found it; and the edits that would be lost."""
    text = PARAMS_FILE.read_text(encoding="utf-8") if PARAMS_FILE.is_file() else ""
    if LAST.is_file() and text:
        last = read_json(LAST)
        if last["written"] == sha256_file(PARAMS_FILE):
            return str(last["template"]), ""
    load_params()
    command = ["git", "status", "--porcelain", "--", str(PARAMS_FILE)]
    status = subprocess.run(command, capture_output=True, text=True, check=False)
    clean = status.returncode == 0 and not status.stdout.strip()
    if not clean and not force:
        raise UserError(
            f"{PARAMS_FILE}: holds edits that are not committed to git. Commit them (`git commit {PARAMS_FILE}`), or "
            f"give --force: the file as it stands is then kept as {KEPT}."
        )
    return without_marks(text), "" if clean else text


def _read(data: Path, wishes: Wishes) -> tuple[Described, Profile]:
    delimiter = {"\\t": "\t", "tab": "\t"}.get(wishes.delimiter or "", wishes.delimiter)
    if delimiter is not None and len(delimiter) != 1:
        raise UserError(f"--delimiter: found {delimiter!r}; expected one character, as ';', or \\t for a tab.")
    described = describe(data, wishes.format, wishes.encoding, delimiter, wishes.quoting, wishes.header)
    found = profile(described)
    if "broken_quotes" in found.rejected and wishes.quoting is None:
        plain = replace(described, quoting="none", reasons=dict(described.reasons))
        again = profile(plain)
        if sum(again.rejected.values()) < sum(found.rejected.values()):
            plain.reasons["quoting"] = "quotes are plain characters here: read as quotes, some do not close"
            described, found = plain, again
    rejected = sum(found.rejected.values())
    if rejected > MAX_REJECTED * (found.rows + rejected):
        raise UserError(
            f"{data}: {rejected:,} of {found.rows + rejected:,} records can't be read as {described.format}, "
            f"{described.encoding} ({found.rejections}). "
            f"Correct --format, --delimiter, --quoting or --encoding, or mend the file."
        )
    if not found.rows:
        raise UserError(f"{data}: holds no row, or none but a header. Expected at least {MIN_ROWS}.")
    return described, found


def _named(described: Described, found: Profile, wishes: Wishes) -> tuple[Described, Profile, Roles]:
    """The roles of the columns; columns that the file gives no name are called by their role."""
    if described.format == "text_folder":
        return described, found, roles(found, "text", "label")
    header = described.column_names is None
    what = roles(found, wishes.text_column, wishes.label_column, header)
    if header:
        return described, found, what
    names = {what.text: "text", what.label: "label"}
    if what.id is not None:
        names[what.id] = "id"
    columns = {names.get(name, name): column for name, column in found.columns.items()}
    columns = {name: replace(column, name=name) for name, column in columns.items()}
    described = replace(described, column_names=list(columns))
    what = replace(what, text="text", label="label", id=None if what.id is None else "id")
    return described, replace(found, columns=columns), what


def _check_rows(data: Path, found: Profile, labels: Labels, seen: Tally) -> None:
    if seen.kept < MIN_ROWS:
        raise UserError(
            f"{data}: {seen.kept:,} rows can be learned from, expected at least {MIN_ROWS}. Of {found.rows:,} rows, "
            f"{sum(seen.label_counts.values()):,} have text and label, and equal texts count once."
        )
    bare = [name for name in labels.names if not seen.label_counts.get(name)]
    if bare:
        raise UserError(f"{data}: no row of {', '.join(bare)} has a text. Expected rows of each label.")


def _place(data: Path, name: str | None) -> tuple[Path, str]:
    """The folder under data/raw, and the file's path inside it.

    Raises
        UserError  for a name that is none, and where something else stands there already.
    """
    inside, root = data.resolve(), RAW.resolve()
    if inside.is_relative_to(root) and len(inside.relative_to(root).parts) > 1:
        first, *rest = inside.relative_to(root).parts
        return RAW / first, PurePosixPath(*rest).as_posix()
    if name is None:
        stem = inside.name.partition(".")[0] if inside.is_file() else inside.name
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-") or "data"
    elif not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise UserError(f"--name: found {name!r}; expected letters, digits, `_`, `-` and `.`, and no `.` at first.")
    target = RAW / name / inside.name
    if target.exists() and _sha256(target) != _sha256(inside):
        raise UserError(f"{target}: another file of this name stands there. Take another --name.")
    return RAW / name, inside.name


def _sha256(path: Path) -> str:
    return sha256_file(path) if path.is_file() else sha256_tree(path)


def _drift_reference(draft: Draft, name: str) -> Path:
    """Where the profile of the data last accepted stands: of other data than this, it stays where it is."""
    standing = Path(draft.standing("paths.drift_reference"))
    if standing.is_file() and read_json(standing).get("accepted") is None:
        return standing
    own = standing.with_name(f"accepted_{name}.json")
    draft.set("paths.drift_reference", own.as_posix())
    return own


def _write(data: Path, raw: Path, target: Path, text: str, reference: Path) -> None:
    """The copy, an empty drift reference and params.yaml; or none, where `tunewright check` would find a fault."""
    old = PARAMS_FILE.read_text(encoding="utf-8")
    fresh = [path for path in (raw, target, reference) if not path.exists()]
    try:
        _copy(data, target)
        if not reference.exists():
            write_json(reference, {"accepted": None})
        write_text(PARAMS_FILE, text)
        found = faults()
        if found:
            raise UserError("nothing was written, because of\n  " + "\n  ".join(found))
    except BaseException:
        write_text(PARAMS_FILE, old)
        for path in fresh:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        raise


def _copy(data: Path, target: Path) -> None:
    if target.exists():
        return
    if data.is_dir():
        with atomic_folder(target) as folder:
            shutil.copytree(data, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    else:
        with atomic_file(target) as temporary:
            shutil.copyfile(data, temporary)


def _told(
    raw: Path, target: Path, what: Roles, labels: Labels, found: Profile, seen: Tally, split: Split, kept: bool
) -> str:
    more = f" and {len(labels.names) - 10} more" if len(labels.names) > 10 else ""
    lines = [
        f"{PARAMS_FILE}: written for {found.rows:,} rows of {target}; `tunewright check` finds no fault.",
        "",
        f"  text    {what.text}: {what.reasons['text']}",
        f"  label   {what.label}: {what.reasons['label']}",
        f"  labels  {', '.join(labels.names[:10])}{more}",
        f"  id      {what.id or 'none'}: {what.reasons['id']}",
        f"  split   by {split.column or split.by}: {split.reason}",
        "",
    ]
    few = [f"{label} ({count})" for label, count in seen.label_counts.items() if count < MIN_LABEL_ROWS]
    if few:
        told = "a split may get none, and gate_data then closes. Join labels by `label_mapping`, or add rows."
        lines += [f"Few rows of {', '.join(few[:10])}: {told}", ""]
    size = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
    track = "git add" if size <= TRACKED_BY_GIT else "dvc add"
    lines.append("Each guess stands in params.yaml behind `# init:`, with its reason. Correct what is wrong.")
    if kept:
        lines.append(f"The file as it stood before is {KEPT}.")
    lines += [
        f"Put the licence of the data beside it, and track both: {track} {raw}",
        "Then: tunewright run; and once you have looked at the result: tunewright suggest-contract, tunewright accept",
    ]
    return "\n".join(lines)
