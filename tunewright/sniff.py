"""What kind of file a stranger's file is: its format, encoding, delimiter, quoting and header, each with the reason.

Nothing is guessed when a stage reads: what is found here is written into params.yaml, for a user to correct.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tunewright import sources
from tunewright.errors import UserError
from tunewright.forms import form_of

HEAD_BYTES = 1 << 22
HEAD_RECORDS = 2000
CONSISTENT = 0.9  # of the first records must have one number of fields
SURE = 0.98  # beyond it, one delimiter is as good as another by this measure
DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}
SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".tab": "tsv",
    ".tsv": "tsv",
}


@dataclass(frozen=True)
class Described:
    """A file or folder as `ingest.sources[]` would describe it; `tunewright.sources` reads it by that."""

    path: Path
    format: str
    encoding: str = "utf-8"
    delimiter: str | None = None
    quoting: Literal["minimal", "none"] = "minimal"
    column_names: list[str] | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    """A key of the source → why it has its value."""


def describe(
    path: Path,
    format: str | None = None,  # noqa: A002
    encoding: str | None = None,
    delimiter: str | None = None,
    quoting: Literal["minimal", "none"] | None = None,
    header: bool | None = None,
) -> Described:
    """Look at the beginning of a file (and for its encoding at all of it); what is given is not guessed.

    Raises
        UserError  for a file that is missing, empty or of no known kind, and where a guess is not convincing: naming
                   the option that settles it.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder.")
    if format is not None and format not in sources.formats():
        raise UserError(f"--format: found {format!r}; expected one of {', '.join(sources.formats())}.")
    if path.is_dir():
        return _folder(path, encoding)
    try:
        with sources.opened(path) as stream:
            head = stream.read(HEAD_BYTES)
    except (EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: can't be opened ({str(error).splitlines()[0]}).") from error
    if not head.strip():
        raise UserError(f"{path}: is empty. Expected a row of text and label, at least.")
    found, reason = _format(path, head) if format is None else (format, "as given")
    if found == "parquet":
        return Described(path, found, reasons={"format": reason})
    named, why = _encoding(path, head) if encoding is None else (encoding, "as given")
    described = Described(path, found, named, reasons={"format": reason, "encoding": why})
    if found not in ("csv", "tsv"):
        return described
    if format == "tsv":
        delimiter = "\t"
    return _delimited(described, _text(path, head, named), delimiter, quoting, header)


def _folder(path: Path, encoding: str | None) -> Described:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return Described(path, "hf_dataset", reasons={"format": "the folder is one that save_to_disk wrote"})
    folders = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    files = [file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES]
    if folders and not files:
        reasons = {"format": f"a folder with {len(folders)} sub-folders of texts: each is a label"}
        first = next((file for file in sorted(folders[0].rglob("*")) if file.is_file()), None)
        if encoding is None and first is not None:
            with sources.opened(first) as stream:
                encoding, reasons["encoding"] = _encoding(first, stream.read(HEAD_BYTES))
        return Described(path, "text_folder", encoding or "utf-8", reasons=reasons)
    if not files:
        raise UserError(
            f"{path}: a folder without sub-folders of texts, and without a data file. Expected one of: a sub-folder a "
            f"label, a dataset that save_to_disk wrote, or a file ({', '.join(sorted(SUFFIXES))})."
        )
    listed = ", ".join(sorted(file.name for file in files)[:10])
    raise UserError(f"{path}: a folder with data files ({listed}). Name one file; more go into ingest.sources by hand.")


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() in sources.COMPRESSED else path.suffix.lower()


def _format(path: Path, head: bytes) -> tuple[str, str]:
    if head.startswith(b"PAR1"):
        return "parquet", "it begins as Parquet does"
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"%PDF")):
        raise UserError(f"{path}: a spreadsheet, an archive or a document. Save it as CSV or JSON Lines first.")
    known = SUFFIXES.get(_suffix(path))
    if known is not None and known != "parquet":
        return known, f"by its suffix, {_suffix(path)}"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"{"):
        try:
            json.loads(start.splitlines()[0])
        except ValueError:
            raise UserError(f"{path}: one JSON object over several lines. Expected one object a line.") from None
        return "jsonl", "it begins with a JSON object on a line of its own"
    if start.startswith(b"["):
        raise UserError(f"{path}: a JSON array. Expected JSON Lines, one object a line: `jq -c '.[]'` makes it so.")
    return "csv", "lines with a delimiter"


def _encoding(path: Path, head: bytes) -> tuple[str, str]:
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8", "its byte order mark says so"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", "its byte order mark says so"
    zeros = (head[::2].count(0), head[1::2].count(0))
    if max(zeros) > len(head) // 8:
        return ("utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"), "every other byte is zero, and no mark says which"
    if _is_utf8(path):
        return "utf-8", "every byte of it is valid"
    try:
        head.decode("cp1252")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: neither UTF-8, UTF-16 nor cp1252. Say which it is by --encoding.") from error
    return "cp1252", "not UTF-8; every byte is a letter of cp1252, which is not sure: look at the accents"


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with sources.opened(path) as stream:
            while block := stream.read(sources.BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _text(path: Path, head: bytes, encoding: str) -> str:
    """The head as text, cut after its last whole line where the file goes on."""
    try:
        text = codecs.getincrementaldecoder(encoding)("strict").decode(head)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is not valid {encoding}. Correct --encoding.") from error
    if len(head) == HEAD_BYTES and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    return text.removeprefix("\ufeff")


def _delimited(
    described: Described,
    text: str,
    delimiter: str | None,
    quoting: Literal["minimal", "none"] | None,
    header: bool | None,
) -> Described:
    tried = [_tried(text, sign, quoting) for sign in (DELIMITERS if delimiter is None else [delimiter])]
    usual = {"csv": ",", "tsv": "\t"}[described.format] if _suffix(described.path) in SUFFIXES else None
    best = max(tried, key=lambda one: (one.fits, min(one.share, SURE), one.fields, one.delimiter == usual))
    if best.share < CONSISTENT or not best.fits:
        asked = "Name it by --delimiter" if delimiter is None else "Correct --delimiter"
        raise UserError(
            f"{described.path}: no delimiter gives its lines the same number of fields, and at least two. {asked}; "
            f"texts without a label are nothing to learn from."
        )
    sign, quotes = best.delimiter, best.quoting
    reasons = dict(described.reasons)
    known = {",": "csv", "\t": "tsv"}.get(sign, "csv")
    name = DELIMITERS.get(sign, repr(sign))
    reasons["format"] = f"{name} gives {best.share:.0%} of the first {len(best.rows):,} lines {best.fields} fields"
    reasons["delimiter"] = reasons["format"]
    if quotes == "none":
        reasons["quoting"] = "quotes are plain characters here: read as quotes, some do not close"
    rows = [row for row in best.rows if len(row) == best.fields]
    has_header, why = (header, "as given") if header is not None else _header(rows)
    if has_header:
        names = None
    else:
        names = [f"column_{position}" for position in range(1, best.fields + 1)]
        reasons["column_names"] = f"no header line: {why}"
    return replace(
        described,
        format=known,
        delimiter=None if sign in ",\t" else sign,
        quoting=quotes,
        column_names=names,
        reasons=reasons,
    )


@dataclass(frozen=True)
class _Tried:
    """One delimiter: the first records it gives, and the share of them that have the most usual number of fields."""

    delimiter: str
    quoting: Literal["minimal", "none"]
    rows: list[list[str]]
    share: float

    @property
    def fields(self) -> int:
        return Counter(map(len, self.rows)).most_common(1)[0][0] if self.rows else 0

    @property
    def fits(self) -> bool:
        """At least two fields, and as many in the first line: it may be the header."""
        return self.fields > 1 and len(self.rows[0]) == self.fields


def _tried(text: str, delimiter: str, quoting: Literal["minimal", "none"] | None) -> _Tried:
    if quoting is not None:
        return _parsed(text, delimiter, quoting)
    usual = _parsed(text, delimiter, "minimal")
    if usual.share >= SURE:
        return usual
    plain = _parsed(text, delimiter, "none")
    return plain if plain.share > usual.share else usual


def _parsed(text: str, delimiter: str, quoting: Literal["minimal", "none"]) -> _Tried:
    rows: list[list[str]] = []
    broken = 0
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    for row in _rows(reader):
        if row is None:
            broken += 1
        elif row:
            rows.append(row)
        if len(rows) + broken >= HEAD_RECORDS:
            break
    most = Counter(map(len, rows)).most_common(1)[0][1] if rows else 0
    return _Tried(delimiter, quoting, rows, most / max(1, len(rows) + broken))


def _rows(reader: Iterator[list[str]]) -> Iterator[list[str] | None]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None


def _header(rows: list[list[str]]) -> tuple[bool, str]:
    """Whether the first line names the columns, and why not."""
    first, rest = rows[0], rows[1:]
    cells = [cell.strip() for cell in first]
    if not all(cells) or len(set(cells)) < len(cells):
        return False, "a field of the first line is empty, or stands there twice"
    if any(form_of([cell]) is not None for cell in cells):
        return False, "the first line holds a number or a date"
    if any(len(cell) > 64 or len(cell.split()) > 5 for cell in cells):
        return False, "a field of the first line is too long for a name"
    again = [sum(row[place].strip() == cell for row in rest) for place, cell in enumerate(cells)]
    if any(count > 1 for count in again):
        return False, "a field of the first line stands in later lines too"
    return True, ""
