"""What a written text is worth beside the text that was expected: BLEU, chrF, ROUGE, exact match, edit similarity.

Every metric is a function of how often each row counts (`statistics.Statistic`), so one bootstrap serves them all.
BLEU and chrF belong to a corpus: n-grams are counted a row, the counts are summed over the rows, and one score is made
of the sums. The others are means over rows. With each row counted once, a metric is its library's own figure.

A row without a written text (None) does not count; a corpus of none scores 0. Scales are the libraries': BLEU and chrF
from 0 to 100, the others from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tunewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tunewright.statistics import Statistic

TextMetric = Literal["chrf", "chrf++", "bleu", "rouge1", "rouge2", "rougeL", "exact_match", "edit_similarity"]

ROUGE = ("rouge1", "rouge2", "rougeL")


def text_statistics(
    expected: Sequence[str],
    predicted: Sequence[str | None],
    names: Sequence[TextMetric],
    bleu_tokenize: str = "13a",
) -> dict[str, Statistic]:
    """Each metric of `names` over the rows (N): weights (B, N) → (B,).

    expected, predicted: of each row the text that was expected, and the one that was written, or None.
    bleu_tokenize: how BLEU finds words, by sacrebleu's name.

    Raises
        UserError  a tokenizer of BLEU whose package is not installed.

    Sources: Papineni et al. 2002 (BLEU), Popović 2015 and 2017 (chrF, chrF++), both as Post 2018 computes them
    (sacrebleu's corpus_bleu and corpus_chrf); Lin 2004 (ROUGE, the mean of rouge_score's F1 without stemming).
    """
    found: dict[str, Statistic] = {}
    rouge = [name for name in names if name in ROUGE]
    values = _rouge(expected, predicted, rouge) if rouge else {}
    for name in names:
        if name == "bleu":
            found[name] = _of_corpus(_bleu(bleu_tokenize), expected, predicted)
        elif name in ("chrf", "chrf++"):
            found[name] = _of_corpus(_chrf(word_order=2 if name == "chrf++" else 0), expected, predicted)
        elif name == "exact_match":
            found[name] = mean_of_written(_by_row(_same, expected, predicted))
        elif name == "edit_similarity":
            found[name] = mean_of_written(_by_row(edit_similarity, expected, predicted))
        else:
            found[name] = mean_of_written(values[name])
    return found


def sentence_chrf(expected: Sequence[str], predicted: Sequence[str | None]) -> np.ndarray:
    """Each row's own chrF (N,) from 0 to 100; NaN where nothing was written."""
    metric = _chrf(word_order=0)
    return _by_row(lambda wanted, written: metric.sentence_score(written, [wanted]).score, expected, predicted)


def edit_similarity(expected: str, written: str) -> float:
    """1 − Levenshtein distance / length of the longer text: 1 for equal texts, 0 where no character stays."""
    longest = max(len(expected), len(written))
    return 1.0 - levenshtein(expected, written) / longest if longest else 1.0


def levenshtein(first: str, second: str) -> int:
    """The fewest characters to insert, delete or replace that make one text of the other.

    Myers' bit vectors: a column of the usual table is two integers, with a bit for each character of `first` that
    says whether the column rises or falls there. So a character of `second` costs a few operations on long integers.

    Source: H. Hyyrö, A bit-vector algorithm for computing Levenshtein and Damerau edit distances, Nordic Journal of
    Computing 10 (2003), figure 9.
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for at, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << at
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)
    for character in second:
        same = places.get(character, 0)
        diagonal = (((same & rises) + rises) ^ rises) | same | falls
        right, left = falls | (every & ~(diagonal | rises)), rises & diagonal
        distance += bool(right & last) - bool(left & last)
        right = right << 1 | 1
        rises = (left << 1 | ~(diagonal | right)) & every
        falls = right & diagonal & every
    return distance


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> Statistic:
    """exp(Σ nll / Σ tokens) over the rows (N,).   nll: nats, summed over each row's tokens; NaN: does not count."""
    import numpy as np

    per_token = ratio(nll, tokens)
    return lambda weights: np.exp(per_token(weights))


def bits_per_byte(nll: np.ndarray, sizes: np.ndarray) -> Statistic:
    """Σ nll / (ln 2 · Σ bytes) over the rows (N,): unlike perplexity it can be compared between tokenizers.

    nll: nats, summed over each row's tokens; NaN: does not count.   sizes: bytes of each row's text in UTF-8.
    """
    import math

    return ratio(nll / math.log(2), sizes)


def ratio(above: np.ndarray, below: np.ndarray) -> Statistic:
    """Σ above / Σ below over the rows (N,) in which `above` is no NaN; 0 where nothing is below."""
    import numpy as np

    counts = np.isfinite(above)
    upper, lower = np.where(counts, above, 0.0), np.where(counts, below, 0.0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights @ lower
        result: np.ndarray = weights @ upper / np.where(total > 0, total, 1.0)
        return result

    return statistic


def mean_of_written(values: np.ndarray) -> Statistic:
    """The mean over the rows (N,) that are no NaN; 0 where a resample holds none of them."""
    import numpy as np

    return ratio(values, np.ones(len(values)))


def _by_row(score: Callable[[str, str], float], expected: Sequence[str], predicted: Sequence[str | None]) -> np.ndarray:
    import numpy as np

    return np.array(
        [
            np.nan if written is None else score(wanted, written)
            for wanted, written in zip(expected, predicted, strict=True)
        ],
        dtype=np.float64,
    )


def _same(expected: str, written: str) -> float:
    """1.0 where the texts are equal but for white space around them."""
    return float(expected.strip() == written.strip())


def _rouge(expected: Sequence[str], predicted: Sequence[str | None], names: Sequence[str]) -> dict[str, np.ndarray]:
    import numpy as np
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(names))
    rows = [
        None if written is None else scorer.score(wanted, written)
        for wanted, written in zip(expected, predicted, strict=True)
    ]
    return {
        name: np.array([np.nan if row is None else row[name].fmeasure for row in rows], dtype=np.float64)
        for name in names
    }


def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(tokenize=tokenize, force=True)  # force: no warning about texts that look tokenized already
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"BLEU's tokenizer {tokenize} needs a package that is not installed ({' '.join(str(error).split())}). "
            "Install it, or take `char`."
        ) from error


def _chrf(word_order: int) -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=word_order)


def _of_corpus(metric: Any, expected: Sequence[str], predicted: Sequence[str | None]) -> Statistic:
    """A metric of sacrebleu as its own bootstrap has it: counts a row, summed, then one score."""
    import numpy as np

    written = [at for at, text in enumerate(predicted) if text is not None]
    counts = np.array(
        metric._extract_corpus_statistics([predicted[at] for at in written], [[expected[at] for at in written]])
        if written
        else [[0]],
        dtype=np.float64,
    )

    def statistic(weights: np.ndarray) -> np.ndarray:
        if not written:
            return np.zeros(len(weights))
        sums = (weights[:, written] @ counts).tolist()
        return np.array([metric._compute_score_from_stats(found).score for found in sums])

    return statistic
