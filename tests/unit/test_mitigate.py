"""mitigate: what the labels owe to a group is taken away by weights, or by copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from benchmarks import planted
from stages.audit_data import AuditDataParams
from stages.audit_data import AuditDataPaths as AuditPaths
from stages.audit_data import run as audit_data
from stages.finetune import FinetunePaths
from stages.finetune import run as finetune
from stages.mitigate import MitigateParams, MitigatePaths, MitigateReport, check, run
from stages.tokenize import TokenizeParams, TokenizePaths
from stages.tokenize import run as tokenize
from tests.passing import let_through
from tests.unit.test_audit_data import BASE, LEXICON, PLANTED
from tests.unit.test_finetune import params as finetune_params
from tests.unit.test_report import make_changed_page
from tests.unit.test_threshold_policy import policy
from tunewright.compute import open_tuned, predict, read_tokens
from tunewright.errors import UserError
from tunewright.files import read_parquet, write_json, write_parquet
from tunewright.task_types import text_regression
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=list(planted.LABELS)))


def mitigate(
    folder: Path, rows: list[dict[str, Any]], method: str, feature: str | None = "text.gender", **audit: Any
) -> tuple[MitigateReport, list[dict[str, Any]]]:
    """The report, and the rows of the weights."""
    listed = [{"row_id": f"r{at}", **row} for at, row in enumerate(rows)]
    write_parquet(pa.Table.from_pylist(listed), folder / "prepared/train.parquet")
    paths = MitigatePaths(prepared=folder / "prepared", lexicon=LEXICON, training_weights=folder / "weights.parquet")
    params = MitigateParams(method=method, sensitive_feature=feature)
    report = run(paths, params, TASK, AuditDataParams.model_validate(BASE | PLANTED | audit), privacy=None, seed=3)
    return report, read_parquet(paths.training_weights).to_pylist()


def difference(found: Any, group: str = "women") -> float:
    against = found.groups[group].against_reference
    assert against is not None
    return float(against.difference_in_proportions)


def test_reweighing_by_hand(tmp_path: Path) -> None:
    """8 rows of men, 6 of them positive; 4 of women, 1 of them. P(men) = 2/3, P(positive) = 7/12."""
    rows = [
        {"text": text, "label": label}
        for text, label, count in [
            ("he", "positive", 6),
            ("he", "negative", 2),
            ("she", "positive", 1),
            ("she", "negative", 3),
        ]
        for _ in range(count)
    ]
    report, weights = mitigate(tmp_path, rows, "reweigh", min_group_size=1, sensitive_features=["text.gender"])
    expected = {
        ("men", "positive"): 8 * 7 / 12 / 6,
        ("men", "negative"): 8 * 5 / 12 / 2,
        ("women", "positive"): 4 * 7 / 12 / 1,
        ("women", "negative"): 4 * 5 / 12 / 3,
    }
    assert {(cell.groups, cell.label): cell.weight for cell in report.cells} == pytest.approx(expected, abs=1e-12)
    assert [row["weight"] for row in weights] == pytest.approx(
        [expected["men" if row["text"] == "he" else "women", row["label"]] for row in rows], abs=1e-12
    )
    assert sum(row["weight"] for row in weights) == pytest.approx(12, abs=1e-9)
    assert {row["copies"] for row in weights} == {1}
    assert report.before is not None
    assert report.after is not None
    assert difference(report.before) == pytest.approx(6 / 8 - 1 / 4, abs=1e-9)
    assert difference(report.after) == pytest.approx(0, abs=1e-12)
    assert report.after.groups["women"].favourable_rate == pytest.approx(7 / 12, abs=1e-12)


@pytest.mark.parametrize("method", ["reweigh", "resample"])
@pytest.mark.parametrize("feature", ["who", "text.gender", "text.gender × who"])
def test_planted_bias_is_gone_after_it(tmp_path: Path, method: str, feature: str) -> None:
    crossed = {"intersections": [["text.gender", "who"]]}
    report, weights = mitigate(tmp_path, planted.rows(400, gap=0.5), method, feature, **crossed)
    assert report.before is not None
    assert report.after is not None
    group = "women × women" if "×" in feature else "women"
    assert difference(report.before, group) == pytest.approx(0.5, abs=1e-9)
    assert difference(report.after, group) == pytest.approx(0, abs=1e-9)
    assert {found.verdict for found in report.replaced} == {"fail"}
    assert {found.verdict for found in report.findings} == {"pass"}
    assert "0.0000 after the mitigation, 0.5000 before" in report.findings[0].found
    assert report.rows is not None
    if method == "resample":  # each cell has the 200 rows that independence expects
        assert sum(row["copies"] for row in weights) == 800
        assert {row["weight"] for row in weights} == {1.0}
        assert report.rows.dropped == {"not_drawn": 200}
    else:
        # 300 rows of men are positive and 100 negative where 200 each are expected.
        assert {row["weight"] for row in weights} == {200 / 300, 200 / 100}
        assert report.rows.dropped == {}


def test_its_findings_take_the_place_of_those_of_the_audit(tmp_path: Path) -> None:
    rows = planted.rows(400, gap=0.5)
    report, _ = mitigate(tmp_path, rows, "reweigh")
    params = AuditDataParams.model_validate(BASE | PLANTED)
    audited = audit_data(AuditPaths(prepared=tmp_path / "prepared", lexicon=LEXICON), params, TASK, privacy=None)
    left = [found for found in audited.findings if found not in report.replaced]
    assert len(left) == len(report.findings) == 2
    assert all(found.found.startswith("who: ") for found in left)


def test_rows_of_both_groups_and_of_none_are_cells_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": label}
        for text, label in [("he and she", "positive"), ("it", "negative"), ("it", "positive"), ("he", "negative")]
    ]
    report, weights = mitigate(tmp_path, rows, "reweigh", sensitive_features=["text.gender"])
    assert {cell.groups for cell in report.cells} == {"men + women", "(none)", "men"}
    assert [row["weight"] for row in weights] == [0.5, 1.0, 1.0, 0.5]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = planted.rows(100, gap=0.5)
    mitigate(tmp_path / "one", rows, "resample")
    mitigate(tmp_path / "two", rows, "resample")
    assert (tmp_path / "one/weights.parquet").read_bytes() == (tmp_path / "two/weights.parquet").read_bytes()


@pytest.mark.parametrize("method", ["none", "threshold_optimizer"])
def test_without_a_mitigation_of_the_data_no_row_is_weighed(tmp_path: Path, method: str) -> None:
    report, weights = mitigate(tmp_path, planted.rows(20, gap=0.5), method, None if method == "none" else "who")
    assert (report.applies, report.findings, weights) == (False, [], [])


def test_what_can_not_be_mended_is_refused(tmp_path: Path) -> None:
    audit = AuditDataParams.model_validate(BASE | PLANTED)
    numbers = text_regression.Task(text_regression.TaskParams(type="text_regression"))
    wanted = MitigateParams(method="reweigh", sensitive_feature="text.age")
    assert "no single label" in check(wanted, numbers, audit)[0]
    with pytest.raises(UserError, match=r"found 'text\.age'; audit_data names: text\.gender, who"):
        mitigate(tmp_path, planted.rows(20, gap=0.5), "reweigh", "text.age")
    for wrong in ({"method": "none", "sensitive_feature": "who"}, {"method": "reweigh", "sensitive_feature": None}):
        with pytest.raises(ValidationError, match="sensitive_feature"):
            MitigateParams.model_validate(wrong)


def test_the_report_is_finite_json(tmp_path: Path) -> None:
    report, _ = mitigate(tmp_path, planted.rows(40, gap=1.0), "reweigh")
    report.write(tmp_path / "mitigate.json")
    assert json.loads((tmp_path / "mitigate.json").read_text())["method"] == "reweigh"
    # Women have no positive row, so no weight can give them one.
    assert report.after is not None
    assert report.after.groups["women"].favourable_rate == 0


def test_the_weights_reach_the_loss(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mitigate → tokenize → finetune. A model that has learned the planted bias, 3 to 1 either way, is trained on for
    one step over all rows: the loss of that step is the mean of w · −ln p, which a mean without weights is far from."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"text": text, "label": label}
        for text, label, count in [
            ("he", "positive", 48),
            ("he", "negative", 16),
            ("she", "positive", 16),
            ("she", "negative", 48),
        ]
        for _ in range(count)
    ]
    mitigate(tmp_path, rows, "reweigh", sensitive_features=["text.gender"])
    weights = read_parquet(tmp_path / "weights.parquet")
    for split in ("validation", "test"):
        write_parquet(read_parquet(tmp_path / "prepared/train.parquet"), tmp_path / f"prepared/{split}.parquet")
    write_json(Path("features/features.json"), {"applies": False})

    def train(base: Path, tuned: Path, mitigated: Any, **changes: Any) -> float:
        """The loss of the first step."""
        passed = Path("passed")
        tokens = TokenizePaths(
            prepared=Path("prepared"),
            training_weights=let_through(Path("prepared"), passed, mitigated),
            data_passed=passed,
            base_model=base,
            tokens=Path("tokens"),
            tokenize_plots=Path("plots"),
        )
        tokenize(tokens, TokenizeParams(max_length=8), TASK)
        paths = FinetunePaths(
            tokens=Path("tokens"),
            base_model=base,
            find_lr_report=Path("find_lr.json"),
            features=Path("features"),
            tuned_model=tuned,
            curves=Path("curves"),
        )
        settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "logging_steps": 1, **changes}
        return float(finetune(paths, finetune_params(**settings), TASK, seed=1, num_threads=1).history[0]["loss"])

    biased, every_row = Path("biased"), {"per_device_train_batch_size": len(rows), "max_steps": 1, "eval_steps": 1}
    train(tiny_model, biased, None, max_steps=32, eval_steps=32, per_device_train_batch_size=32)
    logits = predict(open_tuned(TASK, biased).eval(), TASK, read_tokens(Path("tokens/train.arrow")), 64, 0)
    labels = np.array([TASK.label_names.index(row["label"]) for row in rows])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(rows)), labels]
    weighed = float((weights["weight"].to_numpy() * losses).mean())
    assert weighed > float(losses.mean()) + 0.1
    assert train(biased, Path("plain"), None, **every_row) == pytest.approx(float(losses.mean()), abs=1e-4)
    assert train(biased, Path("weighed"), weights, **every_row) == pytest.approx(weighed, abs=1e-4)


def test_the_page_shows_the_groups_the_mitigation_and_the_policy(tmp_path: Path) -> None:
    rows = [row | {"who": f"<b>{row['who']}</b>"} for row in planted.rows(400, gap=0.5)]
    report, _ = mitigate(tmp_path, rows, "reweigh")
    params = AuditDataParams.model_validate(BASE | PLANTED)
    audited = audit_data(AuditPaths(prepared=tmp_path / "prepared", lexicon=LEXICON), params, TASK, privacy=None)
    thresholds, _ = policy(tmp_path / "policy")
    changes = {"audit_data": audited, "mitigate": report, "threshold_policy": thresholds}
    make_changed_page(
        tmp_path / "page",
        **{
            stage: {
                name: value
                for name, value in found.model_dump(mode="json").items()
                if name not in ("label_counts", "label_shares")
            }
            for stage, found in changes.items()
        },
    )
    page = (tmp_path / "page/report.html").read_text()
    assert "<svg" in page and "The favourable label by group" in page
    assert "&lt;b&gt;women&lt;/b&gt;" in page and "<b>women" not in page
    assert "text.gender mended by reweigh" in page
    assert "0.500 <span" in page and "demographic parity difference" in page
    assert ">she</th>" in page  # among the identity terms
    # Every measure of a group stands there with its interval: DPL, DI and the seven that are measured without strata.
    row = next(line for line in page.splitlines() if "&lt;b&gt;women&lt;/b&gt;" in line and "<td>fail</td>" in line)
    assert row.count('<span class="quiet">[') == 9
    women = audited.features["who"].groups["<b>women</b>"].against_reference
    assert women is not None and women.intervals is not None
    low, high = (f"{end:.3f}".replace("-", "−") for end in women.intervals["total_variation"])
    assert f'0.500 <span class="quiet">[{low}, {high}]</span>' in row
