"""code_completion, code_translation, what they are judged by, and the data of their recipes."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages.finetune import FinetunePaths, run
from stages.tokenize import TokenizeParams, TokenizePaths
from stages.tokenize import run as tokenize
from tests.conftest import REPOSITORY
from tests.passing import let_through
from tests.unit.test_finetune_decoder import params
from tunewright.compute import open_tuned, read_tokens
from tunewright.files import read_parquet, write_json, write_parquet
from tunewright.generation import GenerationParams
from tunewright.losses import IGNORED
from tunewright.python_syntax import begins_python, is_python
from tunewright.task import Predicting
from tunewright.task_types import code_completion, code_translation
from tunewright.task_types.code_completion import Hole
from tunewright.tokenizer import ModelTokenizer, open_tokenizer

FUNCTION = "def first(names):\n    for name in names:\n        return name\n    return None\n"
TEXTS = [FUNCTION, "x = 1", "", "a = '<|im_end|>'\nb = a\n", "def é(x):\n    return x\n"]
PRINTED = """\
def first(self, names):
    for name in names:
        if name in self._seen:
            return name
    return None
---
first(names) {
    for (let name of names) {
        if (this._seen.includes(name)) {
            return name;
        }
    }
    return null;
}
===
def f(a, b=-1):
    if a is not None and (a or b) or not a:
        c = (a + b) * 2 ** a // 3
    else:
        c = a - (b - 1)
    return c
---
function f(a, b = -1) {
    let c;
    if (a !== null && (a || b) || !a) {
        c = Math.floor((a + b) * 2 ** a / 3);
    } else {
        c = a - (b - 1);
    }
    return c;
}
===
def f(xs):
    ys = [x.strip() for x in xs if len(x) > 1]
    ys.append(xs[-1])
    return ', '.join(ys[1:])
---
function f(xs) {
    let ys = xs.filter((x) => x.length > 1).map((x) => x.trim());
    ys.push(xs.at(-1));
    return ys.slice(1).join(", ");
}
===
def f(n):
    for i in range(n):
        try:
            yield i
        except (KeyError, E) as e:
            raise ValueError(f'no {i}', key=n)
---
function* f(n) {
    for (let i = 0; i < n; i++) {
        try {
            yield i;
        } catch (e) {
            if (!(e instanceof KeyError || e instanceof E)) throw e;
            throw new ValueError(`no ${i}`, {key: n});
        }
    }
}
"""
SENTINELS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]


@pytest.fixture(scope="module")
def decoder(tiny_decoder: Path) -> ModelTokenizer:
    return open_tokenizer(tiny_decoder)


def completion(**changes: Any) -> code_completion.Task:
    return code_completion.Task(code_completion.TaskParams(type="code_completion", **changes))


def translation() -> code_translation.Task:
    params = code_translation.TaskParams(type="code_translation", prompt_template="To Python: {text}")
    return code_translation.Task(params)


def rows(texts: list[str]) -> pa.Table:
    return pa.table({"row_id": [f"r{at}" for at in range(len(texts))], "text": texts})


def tokens(task: Any, found: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> pa.Table:
    """What the stage `tokenize` makes of the rows."""
    encoded = task.encode(found, tokenizer, max_length)
    row = encoded.pop("row")
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return pa.table({"row_id": found["row_id"].take(row), **encoded})


def decoded(tokenizer: ModelTokenizer, ids: list[int]) -> str:
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


def values(task: Any, table: pa.Table) -> dict[str, float]:
    return {name: float(of(np.ones((1, table.num_rows)))[0]) for name, of in task.statistics(table, 10).items()}


# --- fill-in-the-middle


@pytest.mark.parametrize("split", ["lines", "characters"])
def test_a_cut_text_is_prefix_suffix_middle_and_nothing_of_it_is_lost(split: str, decoder: ModelTokenizer) -> None:
    task = completion(fim_rate=1.0, fim_split=split)
    found = task.encode(rows(TEXTS), decoder, 200)
    assert found["row"] == [0, 1, 2, 3, 4]
    for row, (text, ids, labels) in enumerate(zip(TEXTS, found["input_ids"], found["labels"], strict=True)):
        written = decoded(decoder, ids)
        if not text:  # nothing to be cut
            assert written == "<|endoftext|>" * 2
            continue
        edge, prefix, suffix, middle = (
            written.replace(SENTINELS[0], "§").replace(SENTINELS[1], "§").replace(SENTINELS[2], "§").split("§")
        )
        assert edge == "<|endoftext|>" and middle.endswith(edge)
        middle = middle.removesuffix(edge)
        assert prefix + middle + suffix == text and middle
        assert (prefix, middle, suffix) == task.pieces(text, f"r{row}")
        # All of the code counts, and that the middle is at its end; the sentinels don't.
        assert decoded(decoder, [label for label in labels if label != IGNORED]) == prefix + suffix + middle + edge
        assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        assert found["bytes"][row] == len(text.encode())
        assert found["tokens_before"][row] == len(ids) == len(labels)
        if split == "lines":
            assert all(piece == "" or piece.startswith("\n") for piece in (middle if prefix else "", suffix))


def test_the_label_of_a_sentinel_is_ignored_also_where_it_is_a_token_of_the_tokenizer(decoder: ModelTokenizer) -> None:
    names = ["<|im_start|>", "<|im_end|>", "<mid>"]
    task = completion(fim_rate=1.0, fim_sentinels=names)
    (ids,), (labels,) = (task.encode(rows(TEXTS[:1]), decoder, 200)[name] for name in ("input_ids", "labels"))
    start, end = (decoder.backend.token_to_id(name) for name in names[:2])
    assert (ids.count(start), ids.count(end)) == (1, 1)
    assert ids[1] == start and labels[:2] == [IGNORED, IGNORED]
    assert start not in labels and end not in labels
    spelled = decoder.backend.encode("<mid>").ids  # a text of several tokens
    at = next(place for place in range(len(ids)) if ids[place : place + len(spelled)] == spelled)
    assert len(spelled) > 1 and labels[at : at + len(spelled)] == [IGNORED] * len(spelled)
    assert labels.count(IGNORED) == 3 + len(spelled)


def test_a_text_that_holds_a_sentinel_or_has_no_room_for_them_is_not_cut(decoder: ModelTokenizer) -> None:
    task, plain = completion(fim_rate=1.0), completion()
    texts = rows([FUNCTION, f"x = '{SENTINELS[1]}'\n" + FUNCTION])
    length = len(plain.encode(texts, decoder, 500)["input_ids"][0])
    for room in (length - 1, length, length + 5):
        assert task.encode(texts, decoder, room) == plain.encode(texts, decoder, room)


def test_the_rate_is_the_share_of_texts_that_are_cut_by_the_row_and_the_seed_alone() -> None:
    ids = [f"row{at}" for at in range(2000)]

    def cut(rate: float, seed: int = 0) -> dict[str, tuple[str, str, str]]:
        task = completion(fim_rate=rate, fim_seed=seed)
        return {row: found for row in ids if (found := task.pieces(FUNCTION, row)) is not None}

    half = cut(0.5)
    assert abs(len(half) - 1000) < 4 * math.sqrt(2000 * 0.25)
    assert (len(cut(0.0)), len(cut(1.0))) == (0, 2000)
    assert cut(0.5) == half != cut(0.5, seed=1)
    assert set(cut(0.2)) < set(half)  # a row that is cut stays so, in the same places, when more are
    # Two of the five places, each pair as often: 0, the ends of three lines that have a next, and the text's end.
    counts = np.unique([len(middle) for _, middle, _ in cut(1.0).values()], return_counts=True)[1]
    assert counts.sum() == 2000 and len({found[0] for found in half.values()}) == 5


def test_three_sentinels_that_differ_are_asked_for() -> None:
    with pytest.raises(ValidationError, match="three that differ"):
        completion(fim_sentinels=["<a>", "<b>", "<a>"])


# --- the lines that are written


def test_a_hole_is_whole_lines_after_the_first_and_begins_with_one_that_is_not_blank() -> None:
    text = "def f(x):\n\n    y = x\n    return y\n\n"
    for lines, places in ((1, {2, 3}), (2, {2}), (3, set())):
        task = completion(completion_lines=lines)
        found = [task.hole(text, f"row{at}") for at in range(40)]
        assert {hole.prefix.count("\n") + 1 for hole in found if hole} == places
        for hole in found:
            if hole:
                assert f"{hole.prefix}\n{hole.lines}{hole.suffix}" == text
                assert hole.lines.count("\n") + 1 == lines and hole.lines.strip()
    assert completion().hole("x = 1\n", "row") is None


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("\n    return x\n    y", "    return x"),
        ("  # more of this line\n\n  \n    return x  \n", "    return x"),
        ("no line's end", ""),
        ("", ""),
    ],
)
def test_of_what_is_written_the_first_line_after_the_prefix_counts(written: str, kept: str) -> None:
    assert completion()._lines(written) == kept


def test_what_is_written_is_judged_in_its_place() -> None:
    hole = Hole("def f(x):\n    if x:", "        return 1", "\n    return 0\n")
    filling, going_on = completion(fim_rate=0.5), completion()
    assert filling.is_python(hole, hole.lines) and going_on.is_python(hole, hole.lines)
    assert going_on.is_python(hole, "        for y in x:")  # a body can follow
    assert not filling.is_python(hole, "        for y in x:")  # and none does
    for wrong in ("    return 1", "        return (1]", "        return 'a", "", "   "):
        assert not filling.is_python(hole, wrong) and not going_on.is_python(hole, wrong)


@pytest.mark.parametrize(
    ("text", "whole", "begins"),
    [
        ("x = 1\n", True, True),
        ("def f():\n    return 1\n", True, True),
        ("def f(x):", False, True),
        ("try:\n    x", False, True),
        ("x = [1,\n  2", False, True),
        ("x = '''a", False, True),
        ("x = 'a", False, False),
        ("def f(x)\n", False, False),
        ("print 'x'", False, False),
        ("x = '\\d'", True, True),  # a warning, which is kept to itself
        ("\0", False, False),
        ("(" * 500 + ")" * 500, False, False),  # nested too deeply for the parser
    ],
)
def test_python_is_what_its_parser_takes(text: str, whole: bool, begins: bool) -> None:
    assert (is_python(text), begins_python(text)) == (whole, begins)


def test_the_metrics_of_written_lines() -> None:
    task = completion(fim_rate=0.5)
    holes = [Hole("def f(x):", "    return x", "\n")] * 4 + [Hole("if", "x", "")]
    written = ["    return x", "    return y", "return x", None, "    return x"]
    table = task._with_lines(pa.table({"nll": [math.log(2) * 8] * 5, "bytes": [4] * 5}), holes, written)
    assert table["is_python"].to_pylist() == [True, True, False, None, None]  # the last is no Python by itself
    found = values(task, table)
    assert found["bits_per_byte"] == pytest.approx(2.0)
    assert found["exact_match"] == pytest.approx(2 / 4)  # white space around it does not count
    # 12 characters: equal; one differs; four are missing; the last label is one character of them.
    assert found["edit_similarity"] == pytest.approx((1 + 11 / 12 + 8 / 12 + 1 / 12) / 4)
    assert found["syntax_valid"] == pytest.approx(2 / 3)
    assert task.examples(table, 3) == [4, 2, 1]


def test_the_likelihood_is_that_of_the_uncut_text_and_lines_are_written_for_the_rows_that_are_asked_for(
    tiny_decoder: Path, decoder: ModelTokenizer
) -> None:
    found = rows(TEXTS)
    how = Predicting(2, 0, GenerationParams(max_new_tokens=3, max_rows=2))
    plain, cut = completion(), completion(fim_rate=1.0)
    model = plain.load_model(tiny_decoder, {})
    first = plain.predict(model, decoder, found, tokens(plain, found, decoder, 100), how)
    second = cut.predict(model, decoder, found, tokens(cut, found, decoder, 120), how)
    assert first["nll"].to_pylist() == pytest.approx(second["nll"].to_pylist(), rel=1e-5)
    assert first["bytes"].to_pylist() == second["bytes"].to_pylist() == [len(text.encode()) for text in TEXTS]
    # Three of them have a line after the first; two are asked for.
    assert [text is None for text in first["predicted"].to_pylist()] == [False, True, True, False, True]
    assert [bool(label) for label in first["label"].to_pylist()] == [True, False, False, True, True]


def test_a_prompt_that_is_too_long_keeps_what_is_next_to_the_hole(decoder: ModelTokenizer) -> None:
    hole = Hole("ab" * 60 + "before", "x", "after" + "yz" * 60)
    filling, going_on = completion(fim_rate=0.5), completion()
    assert decoded(decoder, filling._prompt(hole, decoder, None)) == (
        f"<|endoftext|><fim_prefix>{hole.prefix}<fim_suffix>{hole.suffix}<fim_middle>"
    )
    assert decoded(decoder, going_on._prompt(hole, decoder, None)) == f"<|endoftext|>{hole.prefix}"
    ids = filling._prompt(hole, decoder, 100)
    before, after = decoded(decoder, ids).split("<fim_prefix>")[1].removesuffix("<fim_middle>").split("<fim_suffix>")
    assert len(ids) == 100 and before and hole.prefix.endswith(before) and after and hole.suffix.startswith(after)
    ids = going_on._prompt(hole, decoder, 20)
    assert len(ids) == 20 and hole.prefix.endswith(decoded(decoder, ids[1:]))


def test_the_baseline_writes_what_follows_the_most_similar_line_or_the_last_line_again() -> None:
    code = "def get(key):\n    value = table[key]\n    return value\n"
    alike = "def get(other):\n    value = table[key]\n    return value\n"
    task = completion()
    train = rows([code] * 3 + ["def put(name):\n    names.append(name)\n"])
    found = task.baseline({"train": train, "validation": rows([alike] * 6), "test": rows([alike, "x = 1"])}, None, 0)
    assert found.details["lines"] == "what follows the most similar line" == found.name.split(";")[0]
    assert found.details["validation_edit_similarity"]["what follows the most similar line"] == 1.0
    test = found.predictions["test"]
    assert test["predicted"].to_pylist() == [test["label"][0].as_py(), None]
    metrics = values(task, test)
    assert (metrics["exact_match"], metrics["syntax_valid"]) == (1.0, 1.0)
    assert 0 < metrics["bits_per_byte"] < 8 and "perplexity" not in metrics


def test_a_missing_line_is_learnt_by_heart(tmp_path: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task, tokenizer = completion(fim_rate=1.0), open_tokenizer(tiny_decoder)
    for split, count in (("train", 48), ("validation", 6), ("test", 2)):
        ids = [f"{split}{row}" for row in range(count)]
        write_parquet(
            pa.table({"row_id": ids, "text": ["def good():\n    film\n"] * count}), Path(f"prepared/{split}.parquet")
        )
    write_json(Path("features/features.json"), {"applies": False})
    weights = let_through(Path("prepared"), Path("passed"))
    tokenize(
        TokenizePaths(
            prepared=Path("prepared"), training_weights=weights, data_passed=Path("passed"), base_model=tiny_decoder,
            tokens=Path("tokens"), tokenize_plots=Path("plots"),
        ),
        TokenizeParams(max_length=96),
        task,
    )  # fmt: skip

    def measured(model: Any) -> dict[str, float]:
        how = Predicting(2, 0, GenerationParams(max_new_tokens=16))
        found = read_parquet(Path("prepared/test.parquet"))
        return values(task, task.predict(model, tokenizer, found, read_tokens(Path("tokens/test.arrow")), how))

    before = measured(task.load_model(tiny_decoder, {}))
    run(
        FinetunePaths(
            tokens=Path("tokens"), base_model=tiny_decoder, find_lr_report=Path("none.json"), features=Path("features"),
            tuned_model=Path("tuned"), curves=Path("curves"),
        ),
        params(max_steps=60, eval_steps=20),
        task,
        seed=1,
        num_threads=1,
    )  # fmt: skip
    after = measured(open_tuned(task, Path("tuned")))
    assert after["bits_per_byte"] < before["bits_per_byte"] / 3
    assert (before["exact_match"], after["exact_match"], after["syntax_valid"]) == (0.0, 1.0, 1.0)


# --- translation


def test_a_translation_is_judged_as_code(tiny_decoder: Path, decoder: ModelTokenizer) -> None:
    task = translation()
    table = pa.table(
        {
            "nll": [1.0] * 4,
            "bytes": [4] * 4,
            "label": ["def f():\n    pass", "x = 1", "y = 2", "z"],
            "predicted": ["def f():\n    pass", "let x = 1;", "", None],
        }
    )
    found = values(task, table)
    assert set(found) == set(task.metric_names) - {"perplexity"}
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["edit_similarity"] == pytest.approx((1 + 5 / 10 + 0) / 3)
    assert found["syntax_valid"] == pytest.approx(1 / 3)  # nothing at all is no answer
    found = pa.table({"row_id": ["a"], "text": ["let x = 1;"], "target": ["x = 1"]})
    (ids,) = task.encode(found, decoder, 64)["input_ids"]
    assert decoded(decoder, ids) == "To Python: let x = 1;\nx = 1<|endoftext|>\n"


# --- the data of the recipes


@pytest.fixture(scope="module")
def javascript() -> Any:
    """The printer of data/raw/python_code."""
    spec = importlib.util.spec_from_file_location("javascript", REPOSITORY / "data/raw/python_code/javascript.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def records(name: str) -> list[dict[str, str]]:
    lines = (REPOSITORY / "data/raw/python_code" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_pair_is_python_and_the_javascript_that_is_printed_of_it(javascript: Any) -> None:
    pairs = records("translation.jsonl")
    assert len(pairs) > 1500 and len({pair["python"] for pair in pairs}) == len(pairs)
    assert [pair["javascript"] for pair in pairs] == [javascript.printed(pair["python"]) for pair in pairs]


def test_every_function_is_python_and_stands_once() -> None:
    found = records("functions.jsonl")
    assert len(found) > 2500 and len({row["code"] for row in found}) == len(found)
    assert all(is_python(row["code"]) and 3 <= row["code"].count("\n") <= 30 for row in found)


@pytest.mark.parametrize(("python", "expected"), [pair.split("---\n") for pair in PRINTED.split("===\n")])
def test_python_is_printed_as_javascript(python: str, expected: str, javascript: Any) -> None:
    assert javascript.printed(python) == expected


@pytest.mark.parametrize(
    "python",
    [
        "def f(x):\n    'A docstring.'\n    return x\n",
        "def f(x: int):\n    return x\n",
        "@property\ndef f(self):\n    return self.x\n",
        "def f(x):\n    return zip(x, x)\n",
        "def f(x):\n    return '%s' % x\n",
        "def f(var):\n    return var\n",  # a word of JavaScript's own
        "def f(xs):\n    for x in xs:\n        pass\n    return x\n",  # a `let` does not reach so far
        "def f(x):\n    with x:\n        return 1\n",
        "async def f(x):\n    return x\n",
    ],
)
def test_what_javascript_can_not_say_is_left_out(python: str, javascript: Any) -> None:
    with pytest.raises(javascript.Unsupported):
        javascript.printed(python)
