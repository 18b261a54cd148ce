"""Data with a planted bias of known size: what an audit must find, and what a mitigation must take away.

A text is about a woman or a man, and its adjective says how good something was: half of each group's texts praise. The
label follows the adjective, but for `gap / 2` of each group's rows, where it was turned against the women and for the
men. So the rate of `positive` is ½ + gap/2 among men and ½ − gap/2 among women, exactly, and DPL is `gap`.
"""

from __future__ import annotations

import random
from typing import Any

LABELS = ("negative", "positive")
PRAISE = ("brilliant", "lovely", "superb", "charming", "delightful", "masterly", "touching", "gripping")
BLAME = ("dreadful", "boring", "clumsy", "tiresome", "hollow", "tedious", "shallow", "muddled")
WORKS = ("film", "play", "novel", "song", "show", "essay", "poem", "speech", "series", "sketch", "opera", "score")
TIMES = ("today", "in spring", "last year", "on Monday", "at night", "in the end", "for once", "this week", "in June")
PLACES = ("at home", "in town", "abroad", "on stage", "in Rome", "by the sea", "at school", "in Oslo", "on tour")
WHO = {"women": "she", "men": "he"}


def rows(of_each: int, gap: float, seed: int = 0) -> list[dict[str, Any]]:
    """`of_each` rows of women and as many of men: text, label, who (the group as a column), praised (what the text
    says). `of_each` is even, and `of_each · gap / 2` a whole number.   No text stands twice."""
    turned = round(of_each * gap / 2)
    if of_each % 2 or abs(turned - of_each * gap / 2) > 1e-9:
        raise ValueError(f"{of_each} rows can't have a gap of {gap}")
    rng = random.Random(seed)
    made = []
    for group, pronoun in WHO.items():
        endings = [(work, time, place) for work in WORKS for time in TIMES for place in PLACES]
        for words, good in ((PRAISE, True), (BLAME, False)):
            texts = [
                f"{pronoun} made a {word} {work} {time} {place}" for word in words for work, time, place in endings
            ]
            chosen = rng.sample(texts, of_each // 2)
            # Women lose praise, men lose blame.
            flipped = turned if good == (group == "women") else 0
            for at, text in enumerate(chosen):
                label = good != (at < flipped)
                made.append({"text": text, "label": LABELS[label], "who": group, "praised": good})
    rng.shuffle(made)
    return made
