"""What a sweep tries: how its settings are read, what is proposed, which metric decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.search import Choice, Goal, NoMetric, Range, goal_of, parse, prepare, proposer, written
from tunewright.errors import UserError
from tunewright.params import load_params

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the default params.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())


def test_values_are_read_as_yaml_spells_them() -> None:
    assert parse(["a.b=1e-5,2", "c=null,true,x", "d=[1],[1, 2]", "e=linear", "f=1,1"]) == {
        "a.b": Choice((1e-5, 2)),
        "c": Choice((None, True, "x")),
        "d": Choice(([1], [1, 2])),
        "e": Choice(("linear",)),
        "f": Choice((1,)),
    }
    assert parse(["a=loguniform(1e-5,1e-3)", "b=int(2, 8)"]) == {
        "a": Range(1e-5, 1e-3, log=True, whole=False),
        "b": Range(2, 8, log=False, whole=True),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "params to vary"),
        (["a"], "expected KEY=VALUES"),
        (["a=1", "a=2"], "a second time"),
        (["a="], "no values"),
        (["a=[1"], "not values as YAML"),
        (["a=normal(0,1)"], "no range is called 'normal'"),
        (["a=uniform(1)"], "two numbers, the lower first"),
        (["a=uniform(2,1)"], "two numbers, the lower first"),
        (["a=int(1.5,2)"], "two integers"),
        (["a=loguniform(0,1)"], "a range above 0"),
    ],
)
def test_what_is_no_setting_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.lerning_rate=1,2"], r"finetune\.lerning_rate: unknown key\. Did you mean `learning_rate`"),
        (["finetun.learning_rate=1"], r"finetun: unknown key\. Did you mean `finetune`"),
        (["lr=1"], r"it belongs in its section, as `finetune\.learning_rate`"),
        (["finetune.learning_rate=1e-4,fast"], r"with finetune\.learning_rate=fast:\n.*expected number > 0"),
        (["finetune.learning_rate=uniform(1,20)"], r"learning_rate=20:\n"),
        (["finetune.lora_r=4,8"], "lora_r only with finetuning_type lora"),
        (["seed.x=1"], "what stands above it is no section"),
    ],
)
def test_what_would_be_no_params_file_is_refused_before_anything_runs(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(settings)


def test_a_grid_has_every_combination_and_is_named_after_its_keys() -> None:
    search = prepare(["finetune.learning_rate=1e-5,1e-4", "finetune.weight_decay=0.0,0.1"])
    assert (search.name, search.sampler, search.trials) == ("learning_rate-weight_decay", "grid", 4)
    first = search.proposer.ask(3)
    assert first[:2] == [
        {"finetune.learning_rate": 1e-5, "finetune.weight_decay": 0.0},
        {"finetune.learning_rate": 1e-5, "finetune.weight_decay": 0.1},
    ]
    assert search.proposer.ask(3) == [{"finetune.learning_rate": 1e-4, "finetune.weight_decay": 0.1}]
    assert search.proposer.ask(3) == []
    assert search.results == Path("reports/sweeps/learning_rate-weight_decay")
    assert prepare(["prepare.split_seed=1,2", "seed=1"]).name == "split_seed-seed"
    with pytest.raises(UserError, match="--name a b"):
        prepare(["seed=1,2"], name="a b")


@pytest.mark.parametrize(
    ("settings", "sampler", "trials", "message"),
    [
        (["finetune.learning_rate=uniform(0.1,1)"], None, None, "a grid has no end of it"),
        (["seed=1,2"], "grid", 4, "leave --trials out"),
        (["seed=1,2"], "tpe", None, "needs --trials"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(settings: list[str], sampler: Any, trials: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(settings, sampler=sampler, trials=trials)


def test_optuna_proposes_the_same_again_and_learns_from_what_it_is_told() -> None:
    space = parse(["lr=loguniform(1e-5,1e-1)", "r=int(1,64)", "kind=[a],b"])

    def proposed(sampler: Any, seed: int, good: float, trials: int = 24) -> list[dict[str, Any]]:
        proposing, count = proposer(space, sampler, trials, "minimize", seed)
        assert count == trials
        found: list[dict[str, Any]] = []
        while batch := proposing.ask(2):
            found += batch
            # What is b fails; of the others the nearest to `good` is the best.
            proposing.tell([None if values["kind"] == "b" else abs(values["r"] - good) for values in batch])
        assert len(found) == trials
        return found

    for sampler in ("random", "tpe"):
        assert proposed(sampler, 1, 50.0) == proposed(sampler, 1, 50.0) != proposed(sampler, 2, 50.0)
    assert proposed("random", 1, 50.0) == proposed("random", 1, 5.0)
    told = proposed("tpe", 1, 50.0)
    assert told != proposed("tpe", 1, 5.0)
    for values in told:
        assert 1e-5 <= values["lr"] <= 1e-1 and values["lr"] == float(f"{values['lr']:.4g}")
        assert isinstance(values["r"], int) and 1 <= values["r"] <= 64 and values["kind"] in (["a"], "b")
    last = told[-8:]
    assert sum(values["kind"] == ["a"] for values in last) >= 6  # what fails is kept away from
    assert sum(abs(values["r"] - 50) <= 16 for values in last) >= 5


def test_the_metric_is_the_task_s_own_on_validation() -> None:
    params = load_params()
    assert goal_of(params, None, None) == Goal(
        "evaluate", ("splits", "validation", "metrics", "accuracy", "value"), "maximize"
    )
    assert goal_of(params, "evaluate.splits.validation.metrics.loss.value", None).direction == "minimize"
    assert goal_of(params, "finetune.best_metric", "minimize").path == ("best_metric",)
    for metric, message in (
        ("evaluate.splits.test.metrics.accuracy.value", "can't be measured on test"),
        ("accuracy", "expected STAGE.KEY.KEY"),
        ("evaluat.x", "Stages: "),
        ("finetune.best_metric", "Say --direction"),
    ):
        with pytest.raises(UserError, match=message):
            goal_of(params, metric, None)


def test_a_metric_that_is_not_there_names_what_is() -> None:
    Path("evaluate.json").write_text(
        json.dumps({"splits": {"validation": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}, "rows": 8}}})
    )
    above = ("splits", "validation")
    assert Goal("evaluate", (*above, "accuracy", "value"), "maximize").read(Path()) == (0.5, 0.4, 0.6)
    assert Goal("evaluate", (*above, "rows"), "maximize").read(Path()) == (8.0, None, None)
    with pytest.raises(NoMetric, match=r"no splits\.validation\.acuracy; .* Did you mean `accuracy`"):
        Goal("evaluate", (*above, "acuracy"), "maximize").read(Path())
    with pytest.raises(NoMetric, match="no number"):
        Goal("evaluate", (*above, "accuracy"), "maximize").read(Path())


def test_values_are_written_into_params_yaml_and_its_comments_stay() -> None:
    text = Path("params.yaml").read_text()
    new = written(text, {"finetune.learning_rate": 3e-4, "finetune.adam_beta1": 0.8})
    Path("params.yaml").write_text(new)
    finetune: Any = load_params().value("finetune")
    assert (finetune.learning_rate, finetune.adam_beta1) == (3e-4, 0.8)
    changed = [line for line in new.splitlines() if line not in text.splitlines()]
    assert changed == ["  learning_rate: 0.0003                # or auto: what find_lr finds", "  adam_beta1: 0.8"]
    assert "# Everything that a user edits." in new
