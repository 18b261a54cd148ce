"""Personal data and secrets: what is found, what is not, and what becomes of it.

Numbers are official test numbers or lie in ranges kept for documentation; the tokens are made here, in two parts, so
that no scanner takes this file for a leak.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tunewright.privacy import KINDS, SHOWN, Guard, PrivacyParams, Span, mask, pseudonym, redact, scan
from tunewright.regexes import compiled

POLICIES: dict[str, Any] = dict.fromkeys(KINDS, "redact") | {"phone_regions": ["US"], "patterns": {}}
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ"
    ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
)
KEY = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEowIBAAKCAQEA0\nZx4Vq7ab==\n-----END RSA PRIVATE KEY-----"

VALID = {
    "email": [
        "jane.doe@example.com",
        "jane+films@mail.example.co.uk",
        "O'Neill_99@example.org",
        "josé.garcía@example.es",
        "иван@example.ru",
        "用户@例子.中国",
        "jane＠example．com",
        "jane@xn--fsqu00a.xn--0zwm56d",
    ],
    "phone": [
        "+1 202-555-0123",
        "+12025550123",
        "(202) 555-0123",
        "202.555.0123",
        "1-202-555-0123",
        "+44 20 7946 0958",
        "+44 7700 900123",
        "+33 1 99 00 12 34",
        "+91 98765 43210",
        "+١ ٢٠٢ ٥٥٥ ٠١٢٣",
        "２０２-５５５-０１２３",
        "202\u2011555\u20110123",
    ],
    "credit_card": [
        "4111 1111 1111 1111",
        "4111111111111111",
        "4012-8888-8888-1881",
        "5555 5555 5555 4444",
        "2223003122003222",
        "3782 822463 10005",
        "371449635398431",
        "6011 1111 1111 1117",
        "3056 930902 5904",
        "3530 1113 3330 0000",
        "6200 0000 0000 0005",
        "٤١١١١١١١١١١١١١١١",
    ],
    "iban": [
        "GB82 WEST 1234 5698 7654 32",
        "DE89370400440532013000",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO93 8601 1117 947",
        "MT84MALT011000012345MTLCAST001S",
        "gb82west12345698765432",
        "BR1800360305000010009795493C1",
    ],
    "ip_address": [
        "192.0.2.17",
        "198.51.100.254",
        "10.20.30.40",
        "2001:db8::1",
        "2001:DB8:0:0:8:800:200C:417A",
        "fe80::1",
    ],
    "us_ssn": ["536-90-4399", "219-09-1234", "536 90 4399", "٥٣٦-٩٠-٤٣٩٩"],
    "secret": [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "11ABCDEFG0" * 3,
        "glpat-" + "a1B2c3D4e5" * 2,
        "xoxb-" + "123456789012-123456789012-a1b2c3d4e5",
        "sk_live_" + "a1b2c3d4" * 3,
        "hf_" + "aBcDeFgHiJ" * 3 + "kLmN",
        "SG." + "a1B2c3D4e5F6g7H8i9J0kL." + "a1B2c3D4e5F6g7H8i9J0" * 2 + "kLm",
        JWT,
        KEY,
        ":_authToken=" + "npm_" + "a1B2c3" * 6,
        "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    ],
}
INVALID = {
    "email": [
        "@jane",
        "jane@",
        "jane@example",
        "jane @example.com",
        "a@b",
        "logo@2x.png",
        "see you @ 8.30",
        "@a.b.com",
    ],
    "phone": [
        "1999-2005",
        "2020-12-25 10:00",
        "$1,000,000",
        "8.5/10",
        "2025550123",
        "978-3-16-148410-0",
        "+10 000 000 views",
        "0.23311 6.062 0.24321",
        "## 0.3.0 - 2019-09-29",
        "202-055-0123",
        "1234567",
        "93.186.135.91",
    ],
    "credit_card": [
        "4111 1111 1111 1112",
        "4111111111111112",
        "1234567812345670",
        "9111111111111111",
        "411111111111111",
        "4111 11111111 1111",
        "x4111111111111111",
    ],
    "iban": [
        "GB83 WEST 1234 5698 7654 32",
        "DE89370400440532013001",
        "DE8937040044053201300",
        "ZZ82WEST12345698765432",
        "GB82 WES T123 45698765432",
        "xGB82WEST12345698765432",
    ],
    "ip_address": [
        "256.1.1.12",
        "1.2.3.4",
        "v10.0.19.41",
        "version 10.20.30.40",
        "package>=10.20.30.40",
        "10.20.30",
        "10.20.30.40.50",
        "127.0.0.1",
        "255.255.255.0",
        "0.0.0.0",  # noqa: S104
        "::1",
        "std::vector",
        "face::add",
        "12:30:45",
        "00:1a:2b:3c:4d:5e",
    ],
    "us_ssn": [
        "000-12-3456",
        "666-12-3456",
        "900-12-3456",
        "536-00-4399",
        "536-90-0000",
        "078-05-1120",
        "536-90 4399",
        "536904399",
        "1536-90-4399",
    ],
    "secret": [
        "AKIA" + "IOSFODNN7",
        "ghp_short",
        "eyJhbGciOiJIUzI1NiJ8.eyJub3QganNvbiI6.x",
        "unforgettable-performances-throughout",
        "password: swordfish",
        "0a1b2c3d" * 8,
        "https://example.com/a/very/long/path/that-goes-on-and-on",
        "antidisestablishmentarianism",
    ],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in VALID.items() for value in values])
def test_a_value_is_found_wherever_it_stands(kind: str, value: str) -> None:
    for before, after in [("", ""), ("see ", " now"), ("(", ")"), ("“", "”."), ("这是", "吗"), ("हाँ ", "।")]:
        text = f"{before}{value}{after}"
        if kind == "email" and before == "这是" and not value[0].isascii():
            continue  # nothing tells where such a name begins
        assert scan(text) == [Span(len(before), len(before) + len(value), kind)], text
        assert mask(text) == redact(text) == f"{before}[{kind.upper()}_1]{after}"


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in INVALID.items() for value in values])
def test_what_only_looks_like_one_is_left_alone(kind: str, value: str) -> None:
    assert scan(value, [kind]) == []
    assert scan(f"see {value} now", [kind]) == []


def test_national_numbers_are_those_of_the_regions_that_are_named() -> None:
    london = "020 7946 0958"
    assert scan(london, regions=["US"]) == [] and scan(london, regions=[]) == []
    assert scan(london, regions=["GB"]) == [Span(0, 13, "phone")]
    assert scan("+44 20 7946 0958", regions=[]) == [Span(0, 16, "phone")]


def test_the_password_of_an_address_goes_with_its_name() -> None:
    assert mask("postgres://jane:hunter2@db.example.com/films").count("hunter2") == 0
    assert mask("amqp://guest:s3cr3t@localhost/") == "amqp[SECRET_1]localhost/"


def test_a_private_key_goes_as_a_whole_even_on_one_line_or_cut_off() -> None:
    assert mask(f"before {KEY} after") == "before [SECRET_1] after"
    assert mask(f"before {' '.join(KEY.split())} after") == "before [SECRET_1] after"
    assert mask(KEY.partition("-----END")[0].replace("Zx4Vq7ab==", "Zx4Vq7abMIIEowIBAA==")) == "[SECRET_1]\n"


def test_the_same_value_has_the_same_placeholder_and_another_has_the_next() -> None:
    text = "A@example.com, b@example.com, a@EXAMPLE.com; 4111 1111 1111 1111, 4111-1111-1111-1111"
    assert redact(text) == "[EMAIL_1], [EMAIL_2], [EMAIL_1]; [CREDIT_CARD_1], [CREDIT_CARD_1]"


def test_values_that_overlap_are_one_of_the_longest_kind() -> None:
    # Digits of an account number can be those of a card.
    iban = "DE89370400440532013000"
    assert [span.kind for span in scan(f"{iban} {iban}")] == ["iban", "iban"]
    spans = [Span(0, 6, "phone"), Span(4, 12, "email"), Span(12, 14, "secret")]
    assert redact("abcdefghijklmnop", spans) == "[EMAIL_1][SECRET_1]op"


def test_a_policy_for_each_kind() -> None:
    params = PrivacyParams.model_validate(POLICIES | {"phone": "warn", "us_ssn": "fail", "iban": "off"})
    guard = Guard(params)
    text = "jane@example.com, +1 202-555-0123, 536-90-4399, DE89370400440532013000, jane@example.com"
    assert guard.text("r1", text) == text.replace("jane@example.com", "[EMAIL_1]")
    assert guard.text("r2", "nothing here") == "nothing here"
    assert guard.text("r3", "+1 202-555-0199") == "+1 202-555-0199"
    report = guard.report()
    assert report.kinds["email"].model_dump() == {"policy": "redact", "values": 2, "rows": 1, "row_ids": ["r1"]}
    assert report.kinds["phone"].model_dump() == {"policy": "warn", "values": 2, "rows": 2, "row_ids": ["r1", "r3"]}
    assert report.kinds["us_ssn"].values == 1 and report.kinds["credit_card"].values == 0
    assert "iban" not in report.kinds
    found = {finding.rule: (finding.verdict, finding.found) for finding in report.findings()}
    assert found == {
        "prepare.privacy.us_ssn": ("fail", "1 found in 1 row: r1"),
        "prepare.privacy.email": ("pass", "2 redacted in 1 row: r1"),
        "prepare.privacy.phone": ("warn", "2 found in 2 rows: r1, r3"),
        "prepare.privacy": ("pass", "no secret, credit_card, ip_address"),
    }


def test_a_row_s_columns_share_their_placeholders_and_count_as_one_row() -> None:
    guard = Guard(PrivacyParams.model_validate(POLICIES))
    values = {"text": "ask b@example.com or a@example.com", "author": "a@example.com", "year": "1999", "city": None}
    assert guard.row("r1", values) == {
        "text": "ask [EMAIL_1] or [EMAIL_2]",
        "author": "[EMAIL_2]",
        "year": "1999",
        "city": None,
    }
    assert guard.report().kinds["email"].model_dump() == {
        "policy": "redact",
        "values": 3,
        "rows": 1,
        "row_ids": ["r1"],
    }


def test_what_fails_is_told_though_it_overlaps_what_is_redacted() -> None:
    own = {"CUSTOMER": {"regex": r"cust\d{4}", "policy": "fail"}}
    guard = Guard(PrivacyParams.model_validate(POLICIES | {"patterns": own}))
    guard.text("r1", "cust1234@example.com")
    assert {kind: found.values for kind, found in guard.report().kinds.items() if found.values} == {"CUSTOMER": 1}
    assert guard.report().findings()[0].rule == "prepare.privacy.patterns.CUSTOMER"


def test_a_report_holds_a_few_row_ids_and_no_value() -> None:
    guard = Guard(PrivacyParams.model_validate(POLICIES))
    for number in range(SHOWN + 5):
        guard.text(f"mail:user{number}@example.com", f"I am user{number}@example.com")
    report = guard.report()
    assert report.kinds["email"].rows == SHOWN + 5 and len(report.kinds["email"].row_ids) == SHOWN
    assert report.kinds["email"].row_ids[0] == "mail:[EMAIL_1]"
    assert "example.com" not in report.model_dump_json() + json.dumps([found.found for found in report.findings()])


def test_an_id_that_is_personal_data_becomes_its_hash() -> None:
    assert pseudonym("row-17") == "row-17"
    # printf jane@example.com | sha256sum
    assert pseudonym("jane@example.com") == "8c87b489ce35cf2e2f39f80e282cb2e8"
    assert pseudonym("jane@example.com") != pseudonym("joan@example.com")


def test_every_kind_off_is_not_assessed() -> None:
    guard = Guard(PrivacyParams.model_validate(dict.fromkeys(KINDS, "off") | {"phone_regions": [], "patterns": {}}))
    assert guard.text("r1", "jane@example.com") == "jane@example.com"
    (found,) = guard.report().findings()
    assert (found.rule, found.verdict) == ("prepare.privacy", "not_assessed")


def test_a_user_s_own_pattern_is_found_redacted_and_masked() -> None:
    own = {
        "Employee": {"regex": r"\bEMP-\d{6}\b", "policy": "redact"},
        "ward": {"regex": r"(?i)ward \d+", "policy": "warn"},
    }
    params = PrivacyParams.model_validate(POLICIES | {"patterns": own})
    guard = Guard(params)
    text = "EMP-123456 of Ward 9, EMP-123456, EMP-654321"
    assert guard.text("r1", text) == "[EMPLOYEE_1] of Ward 9, [EMPLOYEE_1], [EMPLOYEE_2]"
    assert guard.report().kinds["ward"].values == 1
    assert mask(text, params) == "[EMPLOYEE_1] of [WARD_1], [EMPLOYEE_1], [EMPLOYEE_2]"
    assert mask(text) == text


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ({"A": {"regex": "(a", "policy": "warn"}}, "a regular expression of Python (missing )"),
        ({"A": {"regex": "(a+)+$", "policy": "warn"}}, "no repeat inside a repeat"),
        ({"A": {"regex": "a*", "policy": "warn"}}, "matches neither the empty text"),
        ({"A": {"regex": "a", "policy": "delete"}}, "'off', 'warn', 'redact' or 'fail'"),
        ({"email": {"regex": "a", "policy": "warn"}}, "distinct names, other than secret"),
        ({"x": {"regex": "a", "policy": "warn"}, "X": {"regex": "b", "policy": "warn"}}, "distinct names"),
        ({"my kind": {"regex": "a", "policy": "warn"}}, "names of ASCII letters"),
    ],
)
def test_a_pattern_that_can_t_be_used_is_refused(patterns: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PrivacyParams.model_validate(POLICIES | {"patterns": patterns})
    assert said in str(caught.value)


def test_an_unknown_region_is_refused() -> None:
    assert PrivacyParams.model_validate(POLICIES | {"phone_regions": ["DE"]}).phone_regions == ["DE"]
    with pytest.raises(ValidationError, match="the ISO code of a country, such as US, GB or DE"):
        PrivacyParams.model_validate(POLICIES | {"phone_regions": ["UK"]})


SLOW = [
    r"(a+)+b",
    r"(a*)*b",
    r"(a|ab)*c",
    r"(?:\w+\s?)+x",
    r"(?:a{1,16})+b",
    r"(x+x+)+y",
    r"(\d+|\w+)+x",
    r"((a+))+b",
    r"(?:\w+ *)+x",
    r"(?i)(?:[a-z]+A)+1",
    r"(\s|  )+x",
]
QUICK = [
    r"EMP-\d{6}",
    r"(?:\d+-)+\d+",
    r"(?:[a-z0-9]+\.)+[a-z]{2,}",
    r"(?:foo|bar)+",
    r"(?:\w+\s)+X",
    r"(?:\d[ -]?){13,19}",
    r"(?:\d{1,3}\.?){4}",
    r"\b\d{2}(?:/\d{2}){2}\b",
    r"(?P<x>a)b(?P=x)",
]


@pytest.mark.parametrize("regex", SLOW)
def test_a_pattern_that_could_take_for_ever_is_refused(regex: str) -> None:
    with pytest.raises(ValueError, match="could take for ever"):
        compiled(regex)


@pytest.mark.parametrize("regex", QUICK)
def test_a_pattern_whose_rounds_end_plainly_is_taken(regex: str) -> None:
    assert compiled(regex).pattern == regex


@pytest.mark.parametrize("character", ["1", "@", "a", ":", ".", "-", "+", "A1", "a@", "://:@", "1 ", "1.", "ab1:"])
def test_a_long_text_of_one_thing_over_and_over_ends(character: str) -> None:
    # The suite's own limit is the judge: here what backtracks without end does so.
    assert scan(character * (100_000 // len(character))) is not None
