"""Scoring new rows, in this process: what is read, what is put aside, what is written, and when nothing is done."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from flows.predict import load
from flows.scoring import KEY, ROWS_AT_ONCE, Scored, Wish, score
from flows.which_model import told
from tests.conftest import REPOSITORY
from tests.exported import export
from tunewright.errors import UserError
from tunewright.files import read_parquet, sha256_file, write_json
from tunewright.generation import GenerationParams
from tunewright.params import load_params

TAGS = ["O", "B-place", "I-place"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make a project with an exported model in an empty folder, which is the current one; gives its params."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", lambda _: None)  # of this process, which others share

    def make(base: Path, task: dict[str, Any] | None = None, **sections: Any) -> Any:
        params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
        params["tokenize"]["max_length"] = 32
        params["num_threads"] = torch.get_num_threads()
        params["task"] = task or params["task"]
        params["verdict"] = {}
        params["champion"]["tolerances"] = {}
        source = params["ingest"]["sources"][0]
        for key in ("label_column", "label_bins"):
            if task and task["type"] != "text_classification":
                source.pop(key)
        for section, values in sections.items():
            (source if section == "source" else params[section]).update(values)
        YAML(typ="safe").dump(params, tmp_path / "params.yaml")
        found = load_params()
        export(tmp_path / "models/export", base, found)
        return found

    return make


def scored(params: Any, **wish: Any) -> Scored:
    return score(Wish(**{"data": Path("new.csv"), "output": Path("out/scores.parquet"), **wish}), params)


def rows_of(path: str = "out/scores.parquet") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_parquet(Path(path)).to_pylist()
    return found


def put_control(values: dict[str, Any]) -> None:
    """A control as the export has it, named in the manifest."""
    control = Path("models/export/control.json")
    write_json(control, values)
    put_into_the_manifest(control)


def put_into_the_manifest(file: Path) -> None:
    """Name a file of the export as it stands."""
    manifest = Path("models/export/MANIFEST.json")
    told = json.loads(manifest.read_text())
    told["files"][file.name] = {"sha256": sha256_file(file), "size": file.stat().st_size}
    write_json(manifest, told)


def test_a_classifier_scores_texts_without_labels(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    Path("new.csv").write_text("id,text\na,A fine film.\nb,Dull & long\nc,A fine film.\n")
    found = scored(params)
    assert (found.rows, found.rejected, found.unchanged) == (3, {}, False)
    first, second, third = rows_of()
    assert list(first) == [
        *("id", "line", "predicted", "probability_negative", "probability_positive"),
        *("logit_negative", "logit_positive"),
    ]
    assert [(row["id"], row["line"]) for row in (first, second, third)] == [("a", 2), ("b", 3), ("c", 4)]
    assert first["probability_positive"] + first["probability_negative"] == pytest.approx(1.0)
    assert first["predicted"] == max(params.task.labels, key=lambda name: first[f"logit_{name}"])
    assert {name: first[name] for name in first if "_" in name} == {
        name: pytest.approx(third[name]) for name in third if "_" in name
    }
    assert sum(found.predicted.values()) == 3
    # What plain Transformers says of the same folder.
    from transformers import pipeline

    (expected,) = pipeline("text-classification", "models/export")("A fine film.")
    assert expected["label"] == first["predicted"]
    assert expected["score"] == pytest.approx(first[f"probability_{first['predicted']}"], abs=1e-5)


def test_the_control_of_the_export_is_honoured(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    Path("new.csv").write_text("id,text\na,A fine film.\nb,Dull & long\n")
    scored(params)
    plain = rows_of()
    logits = [[row["logit_negative"] / 4, row["logit_positive"] / 4] for row in plain]
    sure = [max(math.exp(one), math.exp(two)) / (math.exp(one) + math.exp(two)) for one, two in logits]
    below = sum(sure) / 2
    put_control({"temperature": 4.0, "abstain_below": below})
    found = scored(params)
    rows = rows_of()
    for row, before, confidence in zip(rows, plain, sure, strict=True):
        assert max(row["probability_negative"], row["probability_positive"]) == pytest.approx(confidence, abs=1e-6)
        assert row["abstained"] == (confidence < below)
        assert row["predicted"] == (None if row["abstained"] else before["predicted"])
    assert sorted(row["abstained"] for row in rows) == [False, True]
    assert found.predicted["(abstained)"] == 1 and "(abstained) 1" in " ".join(told(found, "models/export"))


def test_the_exported_model_is_asked_in_python_as_in_a_file(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    texts = ["A fine film.", "", "Dull & long"]
    Path("new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    scored(params, data=Path("new.jsonl"))
    first, second = rows_of()
    answers = load("models/export").predict(texts)
    assert answers == load().predict(texts)  # there is neither a champion nor a history
    assert [answer["text"] for answer in answers] == texts
    assert answers[1] == {"text": "", "error": "empty_text: text is empty, expected something to be read"}
    for answer, row in ((answers[0], first), (answers[2], second)):
        assert list(answer) == ["text", "predicted", "probabilities"]  # it may not abstain
        assert answer["predicted"] == row["predicted"]
        assert answer["probabilities"] == {name: row[f"probability_{name}"] for name in params.task.labels}

    sure = max(answers[0]["probabilities"].values())
    put_control({"temperature": 1.0, "abstain_below": (sure + 1) / 2})
    unsure = load("models/export").predict(texts[:1])[0]
    assert unsure["abstained"] is True and unsure["predicted"] is None
    assert unsure["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)
    assert load("models/export").predict([]) == []
    with pytest.raises(UserError, match=r"text 2: holds what is not Unicode"):
        load("models/export").predict(["A fine film.", "caf\udce9"])
    with pytest.raises(UserError, match=r"nowhere/MANIFEST\.json: not found"):
        load("nowhere")


def test_a_model_answers_by_the_params_that_its_manifest_lists(project: Any, tiny_model: Path) -> None:
    project(tiny_model)
    text = "Dull &amp; long"
    expected = load("models/export").predict([text])
    own = Path("models/export/params.yaml")
    params = YAML(typ="safe").load(Path("params.yaml"))
    params["prepare"]["normalise"] = ["html_entities"]
    YAML(typ="safe").dump(params, own)
    assert load("models/export").predict([text]) == expected  # nobody has published these
    put_into_the_manifest(own)
    assert load("models/export").predict([text]) != expected
    own.write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"models/export/params\.yaml: is missing or not as MANIFEST\.json has it"):
        load("models/export")
    put_into_the_manifest(own)
    with pytest.raises(
        UserError, match=r"(?s)models/export/params\.yaml: 3\d faults.*sbom\.cdx\.json names its version"
    ):
        load("models/export")


@pytest.mark.parametrize("manifest", [[], {}, {"files": ["config.json"]}, {"files": {"config.json": {"size": 1}}}])
def test_a_manifest_that_lists_nothing_is_refused(project: Any, tiny_model: Path, manifest: Any) -> None:
    project(tiny_model)
    write_json(Path("models/export/MANIFEST.json"), manifest)
    with pytest.raises(UserError, match=r"models/export/MANIFEST\.json: lists no files with SHA-256"):
        load("models/export")


def test_the_same_input_is_scored_once_and_any_other_anew(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    Path("new.csv").write_text("id,text\na,A fine film.\nb,Dull\n")
    first = scored(params)
    before = first.output.read_bytes()
    stamp = first.output.stat().st_mtime_ns
    again = scored(params)
    assert again.unchanged and "Nothing to do" in told(again, "models/export")[0]
    assert first.output.stat().st_mtime_ns == stamp

    first.output.unlink()
    assert not scored(params).unchanged
    assert first.output.read_bytes() == before  # the same bytes, in a file of their own

    metadata = json.loads(pq.read_schema(first.output).metadata[KEY])
    assert metadata == first.made_of
    assert set(metadata) == {"input_sha256", "manifest_sha256", "settings_sha256", "versions"}
    assert metadata["manifest_sha256"] == sha256_file(Path("models/export/MANIFEST.json"))
    assert pq.read_metadata(first.output).metadata[KEY]  # Parquet's own key-value metadata

    with Path("new.csv").open("a") as stream:
        stream.write("c,Another\n")
    assert scored(params).rows == 3
    others = params.model_copy(update={"seed": params.seed + 1})
    assert scored(others).made_of["settings_sha256"] != metadata["settings_sha256"]


def test_bad_rows_are_put_aside_with_their_reasons_and_personal_data_is_not_told(
    project: Any, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = YAML(typ="safe").load(REPOSITORY / "params.yaml")["prepare"]["privacy"]
    params = project(tiny_model, prepare={"privacy": {**policies, "us_ssn": "fail", "email": "redact"}})
    lines = [
        "id,text",
        "a,Write to anna@example.com",
        "b,Write to otto@example.org",
        "c,My number is 536-22-1234",
        "d,   ",
        "e,Bad \x07 bell",
        ",No id",
        "f,too,many",
        "g,Fine",
    ]
    Path("new.csv").write_text("\n".join(lines) + "\n")
    found = scored(params)
    assert found.rows == 3
    assert found.rejected == {
        "personal_data": 1,
        "empty_text": 1,
        "control_characters": 1,
        "empty_id": 1,
        "ragged_line": 1,
    }
    first, second, third = rows_of()
    assert [first["id"], second["id"], third["id"]] == ["a", "b", "g"]
    assert first["logit_positive"] == pytest.approx(second["logit_positive"], abs=1e-6)  # both read [EMAIL_1]
    aside = rows_of("out/scores.rejected.parquet")
    assert [(row["line"], row["reason"]) for row in aside] == [
        (4, "personal_data"),
        (5, "empty_text"),
        (6, "control_characters"),
        (7, "empty_id"),
        (8, "ragged_line"),
    ]
    assert {row["file"] for row in aside} == {"new.csv"}
    shown = "\n".join(told(found, "models/export")) + capsys.readouterr().out
    assert "5 rows rejected" in shown
    for value in ("anna@", "otto@", "536-22"):
        assert value not in shown and not any(value in row["detail"] for row in aside)


def test_every_format_and_a_file_without_ids(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    texts = ["A fine film.", "Dull"]
    Path("new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Path("new.csv.gz").write_bytes(gzip.compress(b"text\nA fine film.\nDull\n"))
    Path("new.tsv").write_text("1\t0.5\tA fine film.\n2\t-0.5\tDull\n")  # as the source's own file: no header
    Path("header.tsv").write_text("text\tid\nA fine film.\t1\nDull\t2\n")
    logits = {}
    for name in ("new.jsonl", "new.csv.gz", "new.tsv", "header.tsv"):
        scored(params, data=Path(name), output=Path(f"out/{name}.parquet"))
        found = rows_of(f"out/{name}.parquet")
        logits[name] = [row["logit_positive"] for row in found]
        with_ids = name.endswith(".tsv")
        assert [row["id"] for row in found] == ["1", "2"] if with_ids else all(len(row["id"]) > 20 for row in found)
    assert len({tuple(values) for values in logits.values()}) == 1


def test_what_cannot_be_is_said_and_nothing_is_written(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    Path("new.csv").write_text("id,words\na,A fine film.\n")
    with pytest.raises(UserError, match=r"no column 'text' .*Columns found: id, words"):
        scored(params)
    assert scored(params, text_column="words").rows == 1
    shutil.rmtree("out")
    Path("new.csv").write_text("id,text\na,\nb, \n")
    with pytest.raises(UserError, match=r"none of its rows can be scored \(empty_text 2\)"):
        scored(params)
    assert [path.name for path in Path("out").iterdir() if path.suffix == ".parquet"] in (
        [],
        ["scores.rejected.parquet"],
    )
    Path("new.csv").write_text("id,text\na,one\na,two\n")
    with pytest.raises(UserError, match=r"2 rows repeat an id|1 row repeats an id"):
        scored(params)
    assert not Path("out/scores.parquet").exists()
    Path("mine.parquet").write_text("not ours")
    with pytest.raises(UserError, match="has not written it"):
        scored(params, output=Path("mine.parquet"))
    assert Path("mine.parquet").read_text() == "not ours"


def test_a_model_that_is_not_whole_or_not_of_these_labels_is_refused(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    Path("new.csv").write_text("id,text\na,A fine film.\n")
    labels = params.task.model_copy(update={"labels": ["positive", "negative"]})
    with pytest.raises(UserError, match=r"labels are negative, positive; task\.labels are positive, negative"):
        scored(params.model_copy(update={"task": labels}))
    with Path("models/export/model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    with pytest.raises(UserError, match=r"model\.safetensors: is missing or not as MANIFEST\.json has it"):
        scored(params)
    with pytest.raises(UserError, match=r"nowhere/MANIFEST\.json: not found"):
        scored(params, model=Path("nowhere"))


def test_more_rows_than_are_held_at_once(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model)
    count = ROWS_AT_ONCE + 5
    Path("new.csv").write_text("id,text\n" + "".join(f"{row},Film {row % 7}\n" for row in range(count)))
    assert scored(params).rows == count
    assert [row["id"] for row in rows_of()] == [str(row) for row in range(count)]
    assert pq.read_metadata("out/scores.parquet").num_row_groups == 2


def test_token_classification_gives_a_label_a_word(project: Any, tiny_model: Path) -> None:
    params = project(tiny_model, {"type": "token_classification", "labels": TAGS})
    with Path("new.jsonl").open("w") as stream:
        texts = (["A", "film", "from", "New", "York"], "One two", "two  spaces")
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    found = scored(params, data=Path("new.jsonl"))
    assert (found.rows, found.rejected, found.predicted) == (2, {"words_changed": 1}, {})
    rows = rows_of()
    assert list(rows[0]) == ["id", "line", "predicted"]
    assert [len(row["predicted"]) for row in rows] == [5, 2]
    assert set(rows[0]["predicted"]) <= set(TAGS)


def test_a_decoder_answers_an_instruction(project: Any, tiny_decoder: Path) -> None:
    generation = {"max_new_tokens": 4, "max_rows": 1}
    task = {"type": "instruction", "prompt_template": "Rate: {text}"}
    params = project(tiny_decoder, task, source={"target_column": "answer"}, evaluate={"generation": generation})
    Path("new.csv").write_text("id,text\na,A fine film.\nb,Dull\nc,It holds <|im_end|> inside\n")
    found = scored(params)
    rows = rows_of()
    assert list(rows[0]) == ["id", "line", "predicted"]
    assert (found.rows, found.rejected) == (2, {"not_scorable": 1})
    assert all(isinstance(row["predicted"], str) for row in rows)  # max_rows is of the evaluation
    assert "special tokens" in rows_of("out/scores.rejected.parquet")[0]["detail"]


def test_a_closed_set_of_answers_travels_with_the_export(project: Any, tiny_decoder: Path) -> None:
    task = {"type": "instruction", "prompt_template": "Rate: {text}"}
    params = project(tiny_decoder, task, source={"target_column": "answer"})  # which says nothing of answers
    put_control({"generation": {"choices": ["good", "bad"], "max_rows": 1}})
    Path("new.csv").write_text("id,text\na,A fine film.\nb,Dull\n")
    scored(params)
    assert all(row["predicted"] in ("good", "bad") for row in rows_of())
    # What it was evaluated with is kept to, also where params ask for something else by now.
    evaluate = params.evaluate.model_copy(update={"generation": GenerationParams(max_new_tokens=2)})
    scored(params.model_copy(update={"evaluate": evaluate}), output=Path("out/again.parquet"))
    assert rows_of("out/again.parquet") == rows_of()
    put_control({"generation": {"choises": ["good"]}})
    with pytest.raises(UserError, match=r"control\.json: generation: Extra inputs"):
        scored(params, output=Path("out/third.parquet"))


def test_the_next_answer_of_a_conversation(project: Any, tiny_llama: Path) -> None:
    generation = {"max_new_tokens": 4}
    params = project(tiny_llama, {"type": "chat"}, evaluate={"generation": generation})
    talks = [
        [{"role": "user", "content": "Is it good?"}],
        [
            {"role": "user", "content": "Is it good?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"},
        ],
        [{"role": "user", "content": "Done?"}, {"role": "assistant", "content": "Done."}],
    ]
    texts = ["\n".join(f"<|{one['role']}|>\n{one['content']}" for one in talk) for talk in talks]
    Path("new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = scored(params, data=Path("new.jsonl"))
    assert (found.rows, found.rejected) == (2, {"nothing_to_answer": 1})
    assert list(rows_of()[0]) == ["id", "line", "predicted"]
