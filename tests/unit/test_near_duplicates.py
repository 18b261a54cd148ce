"""Near duplicates: the n-grams, the bands, and which texts are left out."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY, environment, reviews
from tunewright import near_duplicates
from tunewright.near_duplicates import (
    COMPARISONS,
    band_keys,
    banding,
    candidates,
    gram_hashes,
    jaccard,
    representatives,
)
from tunewright.normalise import match_form

ALIKE = {
    "English": (
        "The music is beautiful, the acting is superb and the story moves you from the first scene to the last one.",
        "The music is beautiful, the acting is superb and the story grips you from the first scene to the last one.",
    ),
    "Chinese": (
        "这部电影的音乐非常好听，演员的表演也十分出色，故事从头到尾都很感人，我和家人都很喜欢，值得再看一遍。",
        "这部电影的音乐非常好听，演员的表演也十分出色，故事从头到尾都很感人，我和朋友都很喜欢，值得再看一遍！",
    ),
    "Korean": (
        "이 영화의 음악은 정말 아름답고 배우들의 연기도 훌륭해서 처음부터 끝까지 지루할 틈이 없었습니다",
        "이 영화의 음악은 정말 아름답고 배우들의 연기도 훌륭해서 처음부터 끝까지 지루할 새가 없었습니다",
    ),
    "Arabic": (
        "كان الفيلم رائعا والموسيقى جميلة جدا وكان أداء الممثلين مقنعا من البداية حتى النهاية وأنصح الجميع بمشاهدته",
        "كان الفيلم رائعا والموسيقى جميلة حقا وكان أداء الممثلين مقنعا من البداية حتى النهاية وأنصح الجميع بمشاهدته",
    ),
    "Hindi": (
        "फ़िल्म का संगीत बहुत अच्छा था और कलाकारों का अभिनय शुरू से अंत तक दिल को छू गया, परिवार के साथ ज़रूर देखिए",
        "फ़िल्म का संगीत बहुत अच्छा था और कलाकारों का अभिनय शुरू से अंत तक मन को छू गया, परिवार के साथ ज़रूर देखिए",
    ),
    "Thai": (
        "ภาพยนตร์เรื่องนี้มีดนตรีที่ไพเราะมากและนักแสดงก็แสดงได้ยอดเยี่ยมตั้งแต่ต้นจนจบ",
        "ภาพยนตร์เรื่องนี้มีดนตรีที่ไพเราะมากและนักแสดงก็แสดงได้ดีเยี่ยมตั้งแต่ต้นจนจบ",
    ),
    "emoji": (
        "Loved it 😍😍😍 best night ever 🎉🎉 can't wait to go again 🚀 with the whole family 👨‍👩‍👧",
        "Loved it 😍😍 best night ever 🎉🎉 can't wait to go again 🚀 with the whole family 👨‍👩‍👧!",
    ),
    "mixed scripts": (
        "我昨天看了 Interstellar 这部电影, the soundtrack 真的太棒了, शुक्रिया दोस्तों, شكرا للجميع 🎬",
        "我昨天看了 Interstellar 这部电影, the soundtrack 真的太好了, शुक्रिया दोस्तों, شكرا للجميع 🎬",
    ),
}
OTHER = {
    "English": "Two hours of noise, and not one idea of its own: stay at home and read the book instead.",
    "Chinese": "昨天我们去图书馆借了几本关于天文学的书，管理员告诉我们下个月会有一位著名的科学家来做讲座。",
    "Korean": "어제 우리는 도서관에서 천문학에 관한 책을 몇 권 빌렸고 다음 달에 유명한 과학자의 강연이 있다고 한다",
    "Arabic": "ذهبنا أمس إلى المكتبة واستعرنا بعض الكتب عن علم الفلك وقيل لنا إن عالما مشهورا سيلقي محاضرة قريبا",
    "Hindi": "कल हम पुस्तकालय गए और खगोल विज्ञान की कुछ किताबें लाए, अगले महीने वहाँ एक प्रसिद्ध वैज्ञानिक का भाषण होगा",
    "Thai": "เมื่อวานเราไปห้องสมุดและยืมหนังสือดาราศาสตร์มาหลายเล่ม เดือนหน้าจะมีนักวิทยาศาสตร์มาบรรยาย",
    "emoji": "Rain again ☔☔☔ the bus was late 🚌 and my phone died 📵 so I walked home in the dark 🌧️ not my day 🙃",
    "mixed scripts": "今天下雨 again, मैं घर पर हूँ, الجو بارد, watching रामायण 第三集 with tea ☕ and 饼干",
}


def left_out(texts: list[str], threshold: float = 0.8) -> dict[int, tuple[int, float]]:
    """Each text left out → the text that is kept, and their similarity."""
    forms = [match_form(text) for text in texts]
    return representatives(band_keys(forms, banding(threshold)), [forms.__getitem__], threshold)


@pytest.mark.parametrize(
    ("one", "other", "similarity"),
    [
        ("abcdefg", "abcdefh", 2 / 4),  # abcde, bcdef in common; cdefg and cdefh not
        ("ab cd efg", "abcdefg", 1.0),  # without spaces
        ("今天天气很好", "今天天气真好", 3 / 7),  # 今天, 天天, 天气 in common; 气很, 很好 and 气真, 真好 not
        ("今天天气很好ok", "今天天气很好no", 5 / 9),  # 好o, ok against 好n, no
        ("aaaaaaaa", "aaaaa", 1.0),  # a set: one gram each
        ("good", "good", 1.0),  # shorter than a gram: a gram as a whole
        ("good", "goods", 0.0),
        ("好", "好", 1.0),
        ("😀", "😃", 0.0),
    ],
)
def test_similarity_worked_out_by_hand(one: str, other: str, similarity: float) -> None:
    assert jaccard(one, other) == pytest.approx(similarity, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "grams"),
    [
        ("abcdefg", 3),
        ("a b c d e f g", 3),
        ("abc", 1),
        ("今天天气很好", 5),
        ("好", 1),
        ("अच्छा है", 3),  # 5 + 2 code points, spaces apart
        ("ok今天好ab", 6),  # ok今天好; k今, 今天, 天好, 好a; and what is left, ab
    ],
)
def test_a_gram_is_five_characters_or_two_from_a_dense_script_on(text: str, grams: int) -> None:
    hashes, offsets = gram_hashes(["before it", text, "后面"])
    assert int(offsets[2] - offsets[1]) == grams
    assert len(hashes) == int(offsets[-1])
    alone, _ = gram_hashes([text])
    assert hashes[int(offsets[1]) : int(offsets[2])].tolist() == alone.tolist()  # its neighbours make no difference


@pytest.mark.parametrize(
    ("threshold", "bands", "rows"),
    [
        (0.8, 21, 6),  # 1 − (1 − 0.8⁶)²¹ = 0.9983; with 7 rows and 18 bands 0.9855
        (0.9, 12, 10),  # 1 − (1 − 0.9¹⁰)¹² = 0.9942
        (0.5, 42, 3),
        (1.0, 1, 128),
    ],
)
def test_the_bands_find_99_of_100_pairs_at_the_threshold(threshold: float, bands: int, rows: int) -> None:
    assert banding(threshold) == (bands, rows)


@pytest.mark.parametrize("language", ALIKE)
def test_near_duplicates_of_any_language_are_found_and_other_texts_are_not(language: str) -> None:
    one, other = ALIKE[language]
    found = left_out([OTHER[language], one, other])
    assert set(found) == {2}
    kept, similarity = found[2]
    assert kept == 1
    assert similarity == pytest.approx(jaccard(match_form(one), match_form(other)), abs=1e-12)
    assert 0.8 <= similarity < 1.0


def test_all_languages_side_by_side() -> None:
    texts = [text for language in ALIKE for text in (*ALIKE[language], OTHER[language])]
    assert sorted(left_out(texts)) == [3 * number + 1 for number in range(len(ALIKE))]


def perturbed() -> list[str]:
    """Reviews, each followed by copies in which more and more words are replaced."""
    chance = random.Random(0)
    lines = [line.split("\t")[2] for line in reviews(120).decode().splitlines() if line]
    words = " ".join(lines).split()
    texts = []
    for line in lines:
        texts.append(line)
        copy = line.split()
        for _ in range(3):
            copy[chance.randrange(len(copy))] = chance.choice(words)
            texts.append(" ".join(copy))
    return [form for form in dict.fromkeys(map(match_form, texts)) if len(form) > 30]


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_it_agrees_with_comparing_every_text_with_every_other(threshold: float) -> None:
    texts = perturbed()
    grams = [
        {text[start : start + 5] for start in range(len(text) - 4)} for text in (t.replace(" ", "") for t in texts)
    ]
    expected: set[int] = set()
    for later, earlier in itertools.product(range(len(texts)), repeat=2):
        if earlier < later and not expected & {earlier, later}:
            shared = len(grams[earlier] & grams[later])
            if shared >= threshold * (len(grams[earlier]) + len(grams[later]) - shared):
                expected.add(later)
    found = left_out(texts, threshold)
    assert len(expected) > 20
    assert set(found) == expected
    for later, (kept, similarity) in found.items():
        assert kept not in found
        assert similarity == pytest.approx(jaccard(texts[later], texts[kept]), abs=1e-12)
        assert similarity >= threshold


def test_the_first_of_many_is_kept() -> None:
    base = "your parcel has been handed to the carrier and will arrive within three working days, number "
    found = left_out([f"{base}{number}" for number in range(500)])
    assert set(found) == set(range(1, 500))
    assert {kept for kept, _ in found.values()} == {0}


def test_a_chain_is_thinned_out_and_costs_a_bounded_number_of_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    vocabulary = ["".join(chance.choices("abcdefghijklmnop", k=6)) for _ in range(500)]
    words = chance.choices(vocabulary, k=30)
    chain = []
    for _ in range(600):
        words = [*words]
        words[chance.randrange(30)] = chance.choice(vocabulary)
        chain.append(" ".join(words))
    compared = 0
    real = near_duplicates._jaccard

    def counted(one: np.ndarray, other: np.ndarray) -> float:
        nonlocal compared
        compared += 1
        return real(one, other)

    monkeypatch.setattr(near_duplicates, "_jaccard", counted)
    found = left_out(chain)
    assert compared <= COMPARISONS * len(chain)
    kept = [text for text in range(len(chain)) if text not in found]
    assert 150 < len(kept) < 450
    for one, other in itertools.pairwise(kept):
        assert jaccard(chain[one], chain[other]) < 0.8


def test_texts_that_all_share_their_bands_cost_a_bounded_number_of_pairs() -> None:
    keys = np.zeros((21, 1000), np.uint32)
    later, earlier = candidates(keys)
    assert len(later) <= COMPARISONS * 1000
    assert (earlier < later).all()
    assert set(later.tolist()) == set(range(1, 1000))


def test_no_text_and_one_text() -> None:
    assert left_out(["alone"]) == {}
    assert representatives(np.zeros((21, 0), np.uint32), [str], 0.8) == {}


def test_the_keys_do_not_depend_on_the_batch_nor_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = perturbed()[:60]
    cut = banding(0.8)
    together = band_keys(texts, cut)
    assert (together == np.concatenate([band_keys([text], cut) for text in texts], axis=1)).all()
    monkeypatch.setattr(near_duplicates, "CHUNK", 100)
    assert (together == band_keys(texts, cut)).all()
    program = (
        "import hashlib, json, sys; from tunewright.near_duplicates import band_keys, banding; "
        "print(hashlib.sha256(band_keys(json.load(sys.stdin), banding(0.8)).tobytes()).hexdigest())"
    )
    for threads in ("1", str(max(os.cpu_count() or 1, 2))):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(texts),
            cwd=REPOSITORY,
            env={**environment(), "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == hashlib.sha256(together.tobytes()).hexdigest()
