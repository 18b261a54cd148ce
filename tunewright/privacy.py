"""Personal data and secrets in texts: found by patterns that are checked, redacted by typed placeholders.

`Guard` is what a stage calls for each row; `scan` and `redact` are the same without policies; `mask` is for whatever
quotes data in a message, a log or a page. What is found is told by kind, count and row id, never by its value.

A kind is looked for only where a cheap look says that it can be there, so that most texts cost some microseconds.
Digits of every script count (`٤١١١` is `4111`), and so do full-width characters and typographic hyphens and spaces.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from tunewright.gates import Finding, Verdict
from tunewright.params import Section
from tunewright.regexes import compiled

KINDS = ("secret", "credit_card", "iban", "us_ssn", "email", "phone", "ip_address")
"""What is known without a user's own patterns. Of two that are equally long, the first names what both cover."""
REGIONS = ("US", "GB")
"""Whose national phone numbers are looked for where no params say so."""
SHOWN = 20  # row ids of a kind in a report
SHOWN_IN_FINDING = 5

Policy = Literal["off", "warn", "redact", "fail"]
STRONGEST = ("fail", "redact", "warn")


def _known_regex(regex: str) -> str:
    compiled(regex)
    return regex


def _known_region(name: str) -> str:
    if name not in REGIONS:
        import phonenumbers

        if name not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError("the ISO code of a country, such as US, GB or DE")
    return name


def _distinct_kinds(patterns: dict[str, PatternParams]) -> dict[str, PatternParams]:
    if not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) for name in patterns):
        raise ValueError("names of ASCII letters, digits and `_`, as they will stand in [NAME_1]")
    folded = [name.casefold() for name in patterns]
    if len({*folded, *KINDS}) != len(folded) + len(KINDS):
        raise ValueError(f"distinct names, other than {', '.join(KINDS)}")
    return patterns


class PatternParams(Section):
    """A user's own kind: what it looks like, and what happens to it."""

    regex: Annotated[str, AfterValidator(_known_regex)] = Field(description="a regular expression of Python")
    policy: Policy


class PrivacyParams(Section):
    """What happens to each kind: off, warn, redact or fail. The section `prepare.privacy`."""

    email: Policy
    phone: Policy
    phone_regions: list[Annotated[str, AfterValidator(_known_region)]] = Field(
        description="their national forms are phone numbers too"
    )
    credit_card: Policy
    iban: Policy
    ip_address: Policy
    us_ssn: Policy
    secret: Policy
    patterns: Annotated[dict[str, PatternParams], AfterValidator(_distinct_kinds)]

    @cached_property
    def policies(self) -> dict[str, Policy]:
        """Every kind that is looked for → what happens to it."""
        found = {kind: getattr(self, kind) for kind in KINDS}
        found |= {name: pattern.policy for name, pattern in self.patterns.items()}
        return {kind: policy for kind, policy in found.items() if policy != "off"}

    @cached_property
    def looks(self) -> _Looks:
        """What is looked for."""
        return self._looks(self.policies)

    @cached_property
    def looks_for_all(self) -> _Looks:
        """Everything that is known, whatever its policy."""
        return self._looks([*KINDS, *self.patterns])

    def _looks(self, kinds: Collection[str]) -> _Looks:
        own = tuple((name, compiled(pattern.regex)) for name, pattern in self.patterns.items() if name in kinds)
        return _Looks(frozenset(kinds) & frozenset(KINDS), tuple(self.phone_regions), own)


@dataclass(frozen=True, order=True)
class Span:
    """One value in a text: `text[start:end]`, and its kind (one of KINDS, or the name of a user's own pattern)."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class _Looks:
    """What is looked for: known kinds, regions of phone numbers, and a user's own patterns by name."""

    kinds: frozenset[str]
    regions: tuple[str, ...] = REGIONS
    own: tuple[tuple[str, re.Pattern[str]], ...] = ()


_ALL = _Looks(frozenset(KINDS))


class KindReport(BaseModel):
    """One kind: its policy, how often it was found, and in which rows."""

    policy: Policy
    values: int
    rows: int
    row_ids: list[str]
    """The first SHOWN of them."""


class PrivacyReport(BaseModel):
    """What a Guard has found, for a stage's report: every kind that is not off."""

    kinds: dict[str, KindReport]

    def findings(self) -> list[Finding]:
        """For the data gate, one finding a kind that was found: warn warns, fail fails, what was redacted passes.

        One more says what was looked for and not found; with every kind off, that nothing was looked for.
        """
        verdicts: dict[Policy, Verdict] = {"warn": "warn", "fail": "fail", "redact": "pass"}
        findings = []
        for kind, found in self.kinds.items():
            if found.values:
                rows = ", ".join(found.row_ids[:SHOWN_IN_FINDING])
                more = ", …" if found.rows > SHOWN_IN_FINDING else ""
                done = "redacted" if found.policy == "redact" else "found"
                own = "" if kind in KINDS else "patterns."
                findings.append(
                    Finding(
                        rule=f"prepare.privacy.{own}{kind}",
                        verdict=verdicts[found.policy],
                        found=f"{found.values} {done} in {_counted(found.rows, 'row')}: {rows}{more}",
                        expected="none" if found.policy != "redact" else "none that is not redacted",
                    )
                )
        absent = [kind for kind, found in self.kinds.items() if not found.values]
        if absent or not self.kinds:
            findings.append(
                Finding(
                    rule="prepare.privacy",
                    verdict="pass" if absent else "not_assessed",
                    found=f"no {', '.join(absent)}" if absent else "every kind is off, so nothing was looked for",
                    expected="none" if absent else "at least one kind that is not off",
                )
            )
        return findings


class Guard:
    """Holds the policies of params against one row after another, and keeps count.

    Call it before duplicates are looked for and before the split, so that two texts which differ only in what is
    redacted count as the same. A key to group by is taken from the row before.
    """

    def __init__(self, params: PrivacyParams) -> None:
        self._params = params
        self._looks = params.looks
        self._values = Counter[str]()
        self._rows = Counter[str]()
        self._row_ids: dict[str, list[str]] = defaultdict(list)

    def text(self, row_id: str, text: str) -> str:
        """The text of a row of one column: what is to be redacted, redacted; all found counted under `row_id`."""
        spans = _find(text, self._looks)
        return self._handled(row_id, {"": (text, spans)})[""] if spans else text

    def row(self, row_id: str, values: Mapping[str, str | None]) -> dict[str, str | None]:
        """The same for several columns of one row: the same value gets the same placeholder in all of them."""
        found = {name: (text, _find(text, self._looks)) for name, text in values.items() if text is not None}
        found = {name: (text, spans) for name, (text, spans) in found.items() if spans}
        return {**values, **self._handled(row_id, found)} if found else dict(values)

    def _handled(self, row_id: str, found: Mapping[str, tuple[str, list[Span]]]) -> dict[str, str]:
        policies = self._params.policies
        placeholders = _Placeholders()
        counts = Counter[str]()
        handled = {}
        for name, (text, spans) in found.items():
            one_by_one = _joined(spans, lambda kind: STRONGEST.index(policies[kind]))
            counts.update(span.kind for span in one_by_one)
            handled[name] = placeholders.put(text, [span for span in one_by_one if policies[span.kind] == "redact"])
        for kind, values in counts.items():
            self._values[kind] += values
            self._rows[kind] += 1
            if len(self._row_ids[kind]) < SHOWN:
                self._row_ids[kind].append(mask(row_id, self._params))
        return handled

    def report(self) -> PrivacyReport:
        """What was found so far."""
        return PrivacyReport(
            kinds={
                kind: KindReport(
                    policy=policy,
                    values=self._values[kind],
                    rows=self._rows[kind],
                    row_ids=list(self._row_ids[kind]),
                )
                for kind, policy in self._params.policies.items()
            }
        )


def scan(text: str, kinds: Collection[str] = KINDS, regions: Collection[str] = REGIONS) -> list[Span]:
    """Every value of these kinds, in the order of the text, without overlaps.

    Those that overlap are one, of the kind of the longest, so that redaction leaves nothing of any.
    """
    return _joined(_find(text, _Looks(frozenset(kinds), tuple(regions))))


def redact(text: str, spans: Iterable[Span] | None = None) -> str:
    """The text with each span (of `scan`, where none are given) as a placeholder: `[EMAIL_1]`, the same for the same
    value."""
    return _Placeholders().put(text, scan(text) if spans is None else _joined(spans))


def mask(text: str, params: PrivacyParams | None = None) -> str:
    """The text without any value of any kind, whatever the policies; with `params`, of the user's own patterns too."""
    spans = _find(text, _ALL if params is None else params.looks_for_all)
    return _Placeholders().put(text, _joined(spans)) if spans else text


def placeholders(text: str, params: PrivacyParams | None = None) -> list[tuple[int, int, str]]:
    """What `mask` takes out of a text: first character, the one behind the last, and the placeholder there."""
    given = _Placeholders()
    spans = _joined(_find(text, _ALL if params is None else params.looks_for_all))
    return [(span.start, span.end, given.of(span.kind, text[span.start : span.end])) for span in spans]


def pseudonym(name: str) -> str:
    """An id as a row may carry it: as it is, or where it holds anything that `mask` takes out, the beginning of its
    SHA-256, by which rows can still be told apart and matched."""
    return name if mask(name) == name else hashlib.sha256(name.encode()).hexdigest()[:32]


class _Placeholders:
    """The placeholders of one row: numbered by kind, in the order in which values are met."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], str] = {}
        self._counts = Counter[str]()

    def put(self, text: str, spans: Iterable[Span]) -> str:
        """The text with a placeholder for each span; spans do not overlap."""
        parts = []
        after = 0
        for span in spans:
            parts += [text[after : span.start], self.of(span.kind, text[span.start : span.end])]
            after = span.end
        return "".join([*parts, text[after:]])

    def of(self, kind: str, value: str) -> str:
        """The placeholder of a value."""
        key = (kind, _same(kind, value))
        if key not in self._given:
            self._counts[kind] += 1
            self._given[key] = f"[{kind.upper()}_{self._counts[kind]}]"
        return self._given[key]


def _same(kind: str, value: str) -> str:
    """The form in which two values of a kind are the same: without case and spacing, where these say nothing."""
    if kind in ("credit_card", "iban", "phone", "us_ssn"):
        return re.sub(r"[^0-9a-z+]", "", _folded(value).casefold())
    return _folded(value).casefold() if kind in ("email", "ip_address") else value


def _joined(spans: Iterable[Span], rank: Callable[[str], int] = lambda _kind: 0) -> list[Span]:
    """Spans that overlap as one, of the kind of the lowest rank, of the longest among equals."""
    joined: list[Span] = []
    best = (0, 0, 0)
    for span in sorted(spans):
        place = KINDS.index(span.kind) if span.kind in KINDS else len(KINDS)
        own = (rank(span.kind), span.start - span.end, place)
        if not joined or span.start >= joined[-1].end:
            joined.append(span)
            best = own
        else:
            last = joined[-1]
            kind = span.kind if own < best else last.kind
            best = min(best, own)
            joined[-1] = Span(last.start, max(last.end, span.end), kind)
    return joined


_DIGIT = re.compile(r"\d")
# The shortest token that is looked for (an AWS key), in characters of which tokens are made.
_LONG = re.compile(r"[A-Za-z0-9_/+=-]{20}")
_AWS = ("AKIA", "ASIA", "ABIA", "ACCA", "A3T")
_MANY_DIGITS = re.compile(r"[0-9](?:[^0-9A-Za-z]{0,4}[0-9]){6}")


def _find(text: str, looks: _Looks) -> list[Span]:
    """Every value that is looked for, in any order; they can overlap."""
    found: list[Span] = []
    at = "@" in text or "＠" in text
    digits = _has_digit(text)
    if "secret" in looks.kinds and _can_hold_a_secret(text, at, digits):
        found += (Span(*place, "secret") for place in _secrets(text))
    if at or digits:
        folded = _folded(text)
        if at and "email" in looks.kinds:
            found += (Span(*place, "email") for place in _emails(folded))
        if digits:
            found += _numbers(folded, looks)
    for name, pattern in looks.own:
        found += (Span(*match.span(), name) for match in pattern.finditer(text) if match[0])
    return found


def _has_digit(text: str) -> bool:
    if not text.isascii():
        return _DIGIT.search(text) is not None
    # To ask for one character takes some nanoseconds, a search for any of ten a microsecond.
    return (
        ("0" in text or "1" in text or "2" in text or "3" in text or "4" in text)
        or ("5" in text or "6" in text or "7" in text or "8" in text or "9" in text)
    )  # fmt: skip


def _can_hold_a_secret(text: str, at: bool, digits: bool) -> bool:
    """Whether it is worth looking. A token without a digit, `_` or `-` is next to impossible, but for AWS' prefixes."""
    if digits or "_" in text or "-" in text or ("A" in text and any(prefix in text for prefix in _AWS)):
        return _LONG.search(text) is not None or "PRIVATE KEY" in text or (at and "://" in text)
    return at and "://" in text


def _numbers(text: str, looks: _Looks) -> Iterator[Span]:
    """Every kind that is made of digits."""
    many = _MANY_DIGITS.search(text) is not None
    if many and "credit_card" in looks.kinds:
        yield from (Span(*place, "credit_card") for place in _cards(text))
    if "iban" in looks.kinds:
        yield from (Span(*place, "iban") for place in _ibans(text))
    if many and "us_ssn" in looks.kinds:
        yield from (Span(*match.span(), "us_ssn") for match in _SSN.finditer(text) if match[0] not in NO_SSN)
    if many and "phone" in looks.kinds:
        yield from (Span(*place, "phone") for place in _phones(text, looks.regions))
    if "ip_address" in looks.kinds and (text.count(".") >= 3 or text.count(":") >= 2):
        yield from (Span(*place, "ip_address") for place in _ip_addresses(text))


class _Folds(dict[int, str]):
    """Characters that stand for an ASCII one, each as that one, filled as they are met; others as themselves."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        digit = unicodedata.decimal(character, None)
        if digit is not None:
            found = str(digit)
        elif 0xFF01 <= code <= 0xFF5E:  # full-width forms, in the order of ASCII
            found = chr(code - 0xFEE0)
        else:
            found = {"Pd": "-", "Zs": " "}.get(unicodedata.category(character), character)
        self[code] = "-" if character == "−" else found  # the minus sign is no Pd
        return self[code]


_FOLDS = _Folds()


def _folded(text: str) -> str:
    """The text in the form in which kinds are looked for; every character keeps its place."""
    return text if text.isascii() else text.translate(_FOLDS)


# Letters of scripts that are written with spaces: a name in an address can hold them. Where words are not parted by
# spaces (Chinese, Japanese, Thai and others), only an address that is wholly of such letters can be told.
_LETTERS = "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u060b\u060d-\u061a\u0620-\u0963\u0966-\u0dff"
_UNSPACED = "\u0e00-\u1fff\u2c00-\u2dff\u3005-\u3007\u3040-\ud7ff"
_LOCAL = re.compile(
    rf"(?:[A-Za-z0-9_{_LETTERS}][A-Za-z0-9._%+&'~{_LETTERS}-]*(?<![.'])|[{_UNSPACED}][{_UNSPACED}0-9]*)$"
)
_LABEL = rf"[A-Za-z0-9{_LETTERS}{_UNSPACED}](?:[A-Za-z0-9{_LETTERS}{_UNSPACED}-]{{0,62}})"
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})(?![A-Za-z0-9_])"
    rf"|(?:{_LABEL}\.)+"
    r"(?:[A-Za-z]{2,24}(?![A-Za-z0-9_])|рф|укр|бел|срб|中国|中國|公司|网络|網絡|香港|台灣|한국|भारत|ไทย|مصر|السعودية)"
)
# `logo@2x.png` is the name of a file.
_NO_DOMAINS = ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js")


def _emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL.search(text[max(0, at - 64) : at]) if domain else None
        if domain and local and domain[0].rpartition(".")[2].casefold() not in _NO_DOMAINS:
            yield at - len(local[0]), domain.end()
        at = text.find("@", at + 1)


_CARD = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"[0-9]{4}(?P<four>[ .-])[0-9]{4}(?P=four)[0-9]{4}(?P=four)[0-9]{4}(?:(?P=four)[0-9]{1,3})?"
    r"|3[0-9]{3}(?P<six>[ .-])[0-9]{6}(?P=six)[0-9]{4,5}"
    r"|[0-9]{12,19}"
    r")(?![A-Za-z0-9])"
)
# Issuer: the ranges of the first digits, and the lengths (ISO/IEC 7812, as the issuers publish them).
_ISSUERS: tuple[tuple[tuple[tuple[str, str], ...], Collection[int]], ...] = (
    ((("4", "4"),), (13, 16, 19)),  # Visa
    ((("51", "55"), ("2221", "2720")), (16,)),  # Mastercard
    ((("34", "34"), ("37", "37")), (15,)),  # American Express
    ((("6011", "6011"), ("644", "649"), ("65", "65")), range(16, 20)),  # Discover
    ((("300", "305"), ("3095", "3095"), ("36", "36"), ("38", "39")), range(14, 20)),  # Diners Club
    ((("3528", "3589"),), range(16, 20)),  # JCB
    ((("62", "62"), ("81", "81")), range(16, 20)),  # UnionPay
    ((("5018", "5018"), ("5020", "5020"), ("5038", "5038"), ("5893", "5893")), range(12, 20)),  # Maestro
    ((("6304", "6304"), ("6759", "6759"), ("6761", "6763")), range(12, 20)),  # Maestro
    ((("2200", "2204"),), range(16, 20)),  # Mir
    ((("60", "60"), ("82", "82"), ("508", "508"), ("353", "353"), ("356", "356")), (16,)),  # RuPay
)


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        # A number may follow the card's own four groups.
        for end in dict.fromkeys((match.end(), match.start() + 19 if match["four"] else match.end())):
            if _is_card(re.sub(r"[ .-]", "", text[match.start() : end])):
                yield match.start(), end
                break


def _is_card(digits: str) -> bool:
    """Whether an issuer gives such numbers, and the last digit is right (Luhn)."""
    issued = any(
        len(digits) in lengths and any(low <= digits[: len(low)] <= high for low, high in ranges)
        for ranges, lengths in _ISSUERS
    )
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return issued and (sum(map(int, digits[-1::-2])) + sum(n - 9 if n > 9 else n for n in doubled)) % 10 == 0


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{4}")
# The length of an IBAN in each country that has them (SWIFT's IBAN registry).
_IBAN_LENGTHS = {
    entry[:2]: int(entry[2:])
    for entry in """
        AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29
        ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20
        LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29
        PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
        YE30
    """.split()  # noqa: SIM905
}
_IBAN_REST = re.compile(r"[A-Za-z0-9]+(?:[ -][A-Za-z0-9]+)*")


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2].upper())
        rest = _IBAN_REST.match(text, match.start(), match.start() + 45) if length else None
        if rest is None or length is None:
            continue
        places = [place for place, character in enumerate(rest[0]) if character not in " -"]
        if len(places) < length:
            continue
        end = match.start() + places[length - 1] + 1
        groups = re.split("[ -]", text[match.start() : end])
        whole = end == len(text) or not (text[end].isascii() and text[end].isalnum())
        if whole and all(len(group) == 4 for group in groups[:-1]):
            digits = "".join(groups)
            # Mod 97: the first four characters at the end, letters as numbers from 10 (ISO 7064).
            if int("".join(str(int(character, 36)) for character in digits[4:] + digits[:4])) % 97 == 1:
                yield match.start(), end


_SSN = re.compile(
    r"(?<![A-Za-z0-9-])(?!000|666|9)[0-9]{3}(?P<between>[ -])(?!00)[0-9]{2}(?P=between)(?!0000)[0-9]{4}(?![A-Za-z0-9-])"
)
NO_SSN = {"078-05-1120", "219-09-9999", "457-55-5462"}  # published; the Social Security Administration took them back


# Ten bare digits are an id as often as a number to call, unless they begin with 0; figures with a point are figures.
_NATIONAL = re.compile(r"^\(?0|[0-9][^0-9]+[0-9]")
_DOTTED = re.compile(r"^\(?(?:0[0-9]{1,4}\)?(?:\.[0-9]{2,4}){2,4}|[0-9]{3}\)?[. ][0-9]{3}\.[0-9]{4})$")


def _phones(text: str, regions: Collection[str]) -> Iterator[tuple[int, int]]:
    """By Google's library: with a country code, any possible number; in a national form, a valid one."""
    from phonenumbers import Leniency, PhoneNumberMatcher, ValidationResult, is_possible_number_with_reason

    if "+" in text:
        for match in PhoneNumberMatcher(text, None, leniency=Leniency.POSSIBLE):
            # In full: a number that could be called from nearby only, such as +1 000 0000, is none.
            if is_possible_number_with_reason(match.number) == ValidationResult.IS_POSSIBLE:
                yield _unbracketed(match)
    for region in regions:
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            if _NATIONAL.search(match.raw_string) and ("." not in match.raw_string or _DOTTED.search(match.raw_string)):
                yield _unbracketed(match)


def _unbracketed(match: Any) -> tuple[int, int]:
    """A phone number's place, without a bracket that it stands in."""
    return match.start + (match.raw_string[0] == "(" and ")" not in match.raw_string), match.end


_IPV4 = re.compile(r"(?<![A-Za-z0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![A-Za-z0-9]|\.[0-9])")
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4})(?![A-Za-z0-9])"
)
_VERSION = re.compile(
    r"(?:(?:\bv|ver|version|release|build|firmware|revision|section|chapter|§)[.:]?|[<>=!~]=|[<>~^]) *$", re.IGNORECASE
)


def _ip_addresses(text: str) -> Iterator[tuple[int, int]]:
    """Every address but those of no one machine: loopback, unspecified, multicast, reserved (a netmask)."""
    for match in _IPV4.finditer(text):
        # 1.2.3.4 is a version or a section far more often than a machine.
        small = all(len(part) == 1 for part in match[0].split("."))
        if not small and not _VERSION.search(text[max(0, match.start() - 16) : match.start()]) and _is_ip(match[0]):
            yield match.span()
    for match in _IPV6.finditer(text):
        found = match[0] if match[0].endswith("::") else match[0].rstrip(":")
        groups = [group for group in found.split(":") if group]
        # `a::b` is C++.
        sure = len(groups) > 2 or (groups and len(groups[0]) == 4 and _DIGIT.search(found))
        if sure and _is_ip(found):
            yield match.start(), match.start() + len(found)


def _is_ip(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved)


# What it does not know yet, or (npm's) looks for in a time that grows with the square of the text.
_MORE_SECRETS = (
    re.compile(r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{22}"),
    re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{34}"),
    re.compile(r"(?<![A-Za-z0-9])sk-(?:ant|proj)-[A-Za-z0-9_-]{20}"),
    re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),
    re.compile(r"(?i:aws_secret_access_key)['\"]? ?[=:] ?['\"]?[A-Za-z0-9/+]{40}"),
    re.compile(r":_authToken ?= ?(?:npm_[A-Za-z0-9]{36}|[A-Fa-f0-9-]{36})"),
    re.compile(r"BEGIN ENCRYPTED PRIVATE KEY"),
)
_NO_ASCII = re.compile(r"[^\x00-\x7f]")
_TOKEN_REST = re.compile(r"[A-Za-z0-9_./+=-]*(?<![.])")
_KEY_REST = re.compile(r".*?-----END [A-Z0-9 ]+-----|(?:[-\s:]*[A-Za-z0-9+/=]{16,})*", re.DOTALL)


@cache
def _plugins() -> list[Any]:
    """Those of detect-secrets whose finds are what they say. What goes by entropy or by a word such as `password` fires
    on prose."""
    from detect_secrets.plugins.aws import AWSKeyDetector
    from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
    from detect_secrets.plugins.basic_auth import BasicAuthDetector
    from detect_secrets.plugins.discord import DiscordBotTokenDetector
    from detect_secrets.plugins.github_token import GitHubTokenDetector
    from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
    from detect_secrets.plugins.jwt import JwtTokenDetector
    from detect_secrets.plugins.mailchimp import MailchimpDetector
    from detect_secrets.plugins.openai import OpenAIDetector
    from detect_secrets.plugins.private_key import PrivateKeyDetector
    from detect_secrets.plugins.pypi_token import PypiTokenDetector
    from detect_secrets.plugins.sendgrid import SendGridDetector
    from detect_secrets.plugins.slack import SlackDetector
    from detect_secrets.plugins.square_oauth import SquareOAuthDetector
    from detect_secrets.plugins.stripe import StripeDetector
    from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
    from detect_secrets.plugins.twilio import TwilioKeyDetector

    return [
        AWSKeyDetector(),
        AzureStorageKeyDetector(),
        BasicAuthDetector(),
        DiscordBotTokenDetector(),
        GitHubTokenDetector(),
        GitLabTokenDetector(),
        JwtTokenDetector(),
        MailchimpDetector(),
        OpenAIDetector(),
        PrivateKeyDetector(),
        PypiTokenDetector(),
        SendGridDetector(),
        SlackDetector(),
        SquareOAuthDetector(),
        StripeDetector(),
        TelegramBotTokenDetector(),
        TwilioKeyDetector(),
    ]


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    """By detect-secrets' patterns, in this process; whether a secret still works is never tried."""
    # Its patterns take a letter of any script for a part of the token before it.
    text = _NO_ASCII.sub("\x7f", text)
    for plugin in _plugins():
        for pattern in plugin.denylist:
            for match in pattern.finditer(text):
                # A plugin can refuse what its pattern matches, as what is no JSON in a web token.
                if any(plugin.analyze_string(match[0])):
                    yield _whole(text, *match.span())
    for pattern in _MORE_SECRETS:
        for match in pattern.finditer(text):
            yield _whole(text, *match.span())


def _whole(text: str, start: int, end: int) -> tuple[int, int]:
    """A secret with what belongs to it: the signature of a web token, the body of a private key."""
    if "PRIVATE KEY" in text[start:end] or text.startswith("PuTTY", start):
        rest = _KEY_REST.match(text, end)
        return (start - 5 if text.endswith("-----", 0, start) else start), rest.end() if rest else end
    if text[end - 1] == "@":  # the name and password of an address
        return start, end
    rest = _TOKEN_REST.match(text, end)
    return start, rest.end() if rest else end


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
