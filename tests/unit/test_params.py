"""Every fault of params.yaml at once, each with its line, its key, what was found and what is allowed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from dvc.utils.serialize import parse_yaml
from pydantic import BaseModel, Field

from tunewright.errors import UserError
from tunewright.params import Fraction, Section, allowed, load_params

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def edited(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    """A copy of the repository's params.yaml, with lines that begin with `old` replaced by `new`."""
    lines = TEXT.splitlines()
    for old, new in edits:
        found = [number for number, line in enumerate(lines) if line.startswith(old)]
        assert len(found) == 1, f"{old!r} begins {len(found)} lines of params.yaml"
        lines[found[0]] = new
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def line_of(start: str) -> int:
    """The line of params.yaml that begins so, counted from 1."""
    return 1 + next(number for number, line in enumerate(TEXT.splitlines()) if line.startswith(start))


def missing(expected: str) -> str:
    """The end of the message about a key that is not there."""
    return f"missing; expected {expected}. Add it; docs/params.md says what each key means."


def faults(path: Path) -> list[str]:
    """What `load_params` says of the file: the lines below the heading."""
    with pytest.raises(UserError) as caught:
        load_params(path)
    heading, *lines = str(caught.value).splitlines()
    count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
    assert heading == f"{path}: {count}"
    return [line.strip() for line in lines]


def test_the_repository_s_own_params_are_without_fault() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.value("task.labels") == ["negative", "positive"]
    assert params.path("tokens") == Path("data/tokens")
    assert params.path("finetune_report") == Path("reports/finetune.json")
    assert params.value("finetune.learning_rate") == 1e-4
    with pytest.raises(AttributeError):
        params.value("finetune.learning_rates")


def test_values_are_frozen() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 1


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-5", 0.00001),
        ("1E-5", 0.00001),
        ("1.e-5", 0.00001),
        ("2e0", 2.0),
        ("0.00001", 0.00001),
        ("1_0", 10),
        ("yes", "yes"),
        ("off", "off"),
        ("'1e-5'", "1e-5"),
        ("012", 12),
        ("0o12", 10),
        ("~", None),
        (".5", 0.5),
        ("2024-01-31", "a date"),
    ],
)
def test_a_scalar_is_the_same_to_us_as_to_dvc(tmp_path: Path, scalar: str, value: Any) -> None:
    from tunewright.params import _read

    path = tmp_path / "params.yaml"
    path.write_text(f"key: {scalar}\n")
    ours = _read(path)[0]["key"]
    theirs = parse_yaml(path.read_text(), path)["key"]
    assert (type(ours), ours) == (type(theirs), theirs)
    if value != "a date":
        assert (type(ours), ours) == (type(value), value)


@pytest.mark.parametrize("written", ["1e-5", "1E-5", "0.00001", "1.0e-05"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path: Path, written: str) -> None:
    params = load_params(edited(tmp_path, ("  learning_rate:", f"  learning_rate: {written}")))
    assert params.value("finetune.learning_rate") == 0.00001


def test_a_whole_number_stands_for_a_fraction_but_not_the_other_way_round(tmp_path: Path) -> None:
    params = load_params(edited(tmp_path, ("  weight_decay:", "  weight_decay: 0")))
    assert params.value("finetune.weight_decay") == 0.0
    assert faults(edited(tmp_path, ("seed:", "seed: 42.0"))) == [
        f"line {line_of('seed:')}: seed: found 42.0; expected integer ≥ 0 and < 4294967296."
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        # An unknown key: the nearest one, the name that peers know it by, or the section that it belongs in.
        (
            "  learning_rate:",
            "  learning_rat: 1e-4",
            "finetune.learning_rat: unknown key. Did you mean `learning_rate`?",
        ),
        ("  learning_rate:", "  lr: 1e-4", "finetune.lr: unknown key; here it is called `learning_rate`."),
        ("  num_train_epochs:", "  epochs: 1", "finetune.epochs: unknown key; here it is called `num_train_epochs`."),
        ("  max_length:", "  cutoff_len: 128", "tokenize.cutoff_len: unknown key; here it is called `max_length`."),
        ("num_threads:", "lr: 1e-4", "lr: unknown key; it belongs in its section, as `finetune.learning_rate`."),
        ("num_threads:", "num_thread: 2", "num_thread: unknown key. Did you mean `num_threads`?"),
        (
            "  max_length:",
            "  zzz: 1",
            "tokenize.zzz: unknown key. Allowed here: max_length.",
        ),
        # Wrong types and values.
        ("seed:", "seed: forty-two", "seed: found 'forty-two'; expected integer ≥ 0 and < 4294967296."),
        ("seed:", "seed: -1", "seed: found -1; expected integer ≥ 0 and < 4294967296."),
        ("seed:", "seed: true", "seed: found true; expected integer ≥ 0 and < 4294967296."),
        ("seed:", "seed:", "seed: found nothing; expected integer ≥ 0 and < 4294967296."),
        ("seed:", "seed: '42'", "seed: found '42'; expected integer ≥ 0 and < 4294967296."),
        ("num_threads:", "num_threads: 0", "num_threads: found 0; expected integer ≥ 1 and ≤ 256."),
        (
            "  learning_rate:",
            "  learning_rate: .nan",
            "finetune.learning_rate: found nan; expected number > 0 and ≤ 10, or auto.",
        ),
        (
            "  learning_rate:",
            "  learning_rate: -.inf",
            "finetune.learning_rate: found -inf; expected number > 0 and ≤ 10, or auto.",
        ),
        (
            "  hidden_dropout_prob:",
            "  hidden_dropout_prob: 2",
            "finetune.hidden_dropout_prob: found 2; expected number ≥ 0 and ≤ 1, or null.",
        ),
        (
            "  finetuning_type:",
            "  finetuning_type: heads",
            (
                "finetune.finetuning_type: found 'heads'; expected full, freeze, head, lora, dora, ia3, prompt, "
                "prefix, qlora. Did you mean `head`?"
            ),
        ),
        (
            "  freeze_embeddings:",
            "  freeze_embeddings: no",
            "finetune.freeze_embeddings: found 'no'; expected true or false.",
        ),
        ("  tokens:", "  tokens: ''", "paths.tokens: found ''; expected text of length ≥ 1."),
        (
            "    accuracy: 0.84",
            "    accuracy: high",
            "verdict.min_metrics.accuracy: found 'high'; expected number.",
        ),
        (
            "    accuracy: 0.84",
            "    acuracy: 0.84",
            "verdict.min_metrics.acuracy: no metric of text_classification. Did you mean `accuracy`?",
        ),
        (
            "    accuracy: 0.84",
            "    perplexity: 0.84",
            (
                "verdict.min_metrics.perplexity: no metric of text_classification. "
                "It has accuracy, macro_f1, ece, brier, loss."
            ),
        ),
        (
            "    accuracy: 0.84",
            "    brier: 0.1",
            "verdict.min_metrics.brier: less of it is better. Put it under verdict.max_metrics.",
        ),
        # What a section's own rules say.
        (
            "    - positive",
            "    - negative",
            "task.labels: found ['negative', 'negative']; expected distinct labels.",
        ),
        (
            "    train: 0.8",
            "    train: 0.9",
            "prepare.split: expected train, validation and test to sum to 1 (they sum to 1.1).",
        ),
    ],
)
def test_a_fault_is_named_with_its_line_and_what_is_allowed(tmp_path: Path, old: str, new: str, fault: str) -> None:
    found = faults(edited(tmp_path, (old, new)))
    assert any(line.endswith(f": {fault}") for line in found), found
    # A key that another took the place of is missing too; nothing else is said.
    assert all(line.endswith(f": {fault}") or ": missing; expected " in line for line in found), found


def test_every_fault_of_a_file_is_reported_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        ("num_threads:", "num_threads: two"),
        ("  max_length:", "  max_lenght: 128"),
        ("  learning_rate:", "  learning_rate: -1e-4"),
        ("  weight_decay:", "  warmup_steps: 0.1"),
        ("  calibration_bins:", "  calibration_bins: .nan"),
        ("  onnx:", "  onnx: perhaps"),
    )
    expected = [
        ("num_threads:", "num_threads: found 'two'; expected integer ≥ 1 and ≤ 256."),
        ("tokenize:", f"tokenize.max_length: {missing('integer ≥ 4 and ≤ 1000000')}"),
        ("  max_length:", "tokenize.max_lenght: unknown key. Did you mean `max_length`?"),
        ("finetune:", f"finetune.weight_decay: {missing('number ≥ 0 and ≤ 10')}"),
        ("  learning_rate:", "finetune.learning_rate: found -0.0001; expected number > 0 and ≤ 10, or auto."),
        ("  weight_decay:", "finetune.warmup_steps: stands a second time; it stands on line {first} too. Keep one."),
        ("  calibration_bins:", "evaluate.calibration_bins: found nan; expected integer ≥ 2 and ≤ 100."),
        ("  onnx:", "export.onnx: found 'perhaps'; expected true or false."),
    ]
    first = line_of("  warmup_steps:")
    assert faults(path) == [f"line {line_of(start)}: {fault.format(first=first)}" for start, fault in expected]


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("\ntokenize:\n", "\ntokenizer:\n"), encoding="utf-8")
    assert faults(path) == [
        f"line 1: tokenize: {missing('section with max_length')}",
        f"line {line_of('tokenize:')}: tokenizer: unknown key. Did you mean `tokenize`?",
    ]


def test_a_fault_in_a_list_of_sections_has_its_own_line(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        ("          max: -0.5", "          max: low"),
        ("      text_column:", "      text_colum: text"),
        ("      license: MIT", "      licence: MIT"),
    )
    source = "ingest.sources[0]"
    expected = [
        ("    - name: movie_reviews", f"{source}.license: {missing('text of length ≥ 1')}"),
        ("      license: MIT", f"{source}.licence: unknown key. Did you mean `license`?"),
        ("      text_column:", f"{source}.text_colum: unknown key. Did you mean `text_column`?"),
        ("          max: -0.5", f"{source}.label_bins[0].max: found 'low'; expected number, or null."),
    ]
    assert faults(path) == [f"line {line_of(start)}: {fault}" for start, fault in expected]


def test_an_unknown_task_type_is_the_one_fault_of_its_section(tmp_path: Path) -> None:
    (fault,) = faults(edited(tmp_path, ("  type: text_classification", "  type: text_clasification")))
    place = f"line {line_of('  type: text_classification')}: task.type: found 'text_clasification'"
    assert fault.startswith(f"{place}; expected a task type (")
    assert fault.endswith(" Did you mean `text_classification`?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected sections such as `task:` and `finetune:`, found nothing."),
        (b"- seed\n", "expected sections such as `task:` and `finetune:`, found ['seed']."),
        (b"seed: 42\ntask: [\n", ":3: not valid YAML: "),
        (b"seed: 42\n\tnum_threads: 2\n", ":2: not valid YAML: "),
        (b"seed: \xff\n", ": not UTF-8 at byte 6. Save the file as UTF-8."),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_outside_the_project_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"params\.yaml: not found\. Run from the project's folder"):
        load_params()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert load_params().seed == 42


class Inner(BaseModel):
    width: int


class Toy(Section):
    plain: int
    bounded: int = Field(ge=1, le=8, multiple_of=2)
    share: Fraction | None
    choice: Literal["full", "head"]
    names: list[Annotated[str, Field(min_length=2)]] = Field(min_length=1)
    groups: dict[str, float]
    inner: Inner
    either: int | str
    commit: str = Field(pattern="^[0-9a-f]+$")
    anything: Any


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("plain", "integer"),
        ("bounded", "integer ≥ 1 and ≤ 8 and a multiple of 2"),
        ("share", "number ≥ 0 and ≤ 1, or null"),
        ("choice", "full, head"),
        ("names", "list of length ≥ 1 of text of length ≥ 2"),
        ("groups", "section of text: number"),
        ("inner", "section with width"),
        ("either", "integer, or text"),
        ("commit", "text that matches ^[0-9a-f]+$"),
        ("anything", "any value"),
    ],
)
def test_what_a_key_allows_is_said_in_words(key: str, words: str) -> None:
    assert allowed(Toy, (key,)) == words


def test_what_stands_deeper_is_found() -> None:
    assert allowed(Toy, ("names", 0)) == "text of length ≥ 2"
    assert allowed(Toy, ("groups", "a")) == "number"
    assert allowed(Toy, ("inner", "width")) == "integer"
