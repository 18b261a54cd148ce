"""What counting bytes reaches: an interpolated n-gram model of UTF-8, the opponent of a language model.

    P_n(b | c) = (count(c b) + T(c) · P_{n−1}(b | c')) / (count(c) + T(c))

c: the n − 1 symbols before b; c': the same without the first; T(c): how many different symbols followed c in training.
So a context lends its weight to the shorter one as often as it was surprised. At the bottom every symbol is as likely.
The symbols are the 256 bytes and the edge of a text, which stands before each text and is predicted after it.

Source: I. H. Witten, T. C. Bell, The zero-frequency problem, IEEE Transactions on Information Theory 37 (1991), their
method C, interpolated as in S. F. Chen, J. Goodman, An empirical study of smoothing techniques (1998), section 2.6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

EDGE = 256
SYMBOLS = 257
BITS = 9
"""Of one symbol, so that seven of them fit into 63 bits: a context and what follows is one exact integer."""
MAX_ORDER = 7
MAX_TRAIN_BYTES = 20_000_000
"""Beyond these, evenly spread texts of train are counted: the counts of one order take 24 bytes for each byte."""


@dataclass(frozen=True)
class _Counts:
    """Of one order: each context and symbol seen, as one integer, and each context, both sorted."""

    grams: np.ndarray
    gram_counts: np.ndarray
    contexts: np.ndarray
    context_counts: np.ndarray
    different: np.ndarray
    """T: how many different symbols followed each context."""


class ByteNgrams:
    """Counts of every order up to MAX_ORDER, of the texts of train."""

    def __init__(self, texts: Sequence[str]) -> None:
        import numpy as np

        size = sum(len(text.encode()) for text in texts)
        self.step = max(1, -(-size // MAX_TRAIN_BYTES))
        symbols, events, _ = _symbols(texts[:: self.step])
        self.orders: list[_Counts] = []
        for order in range(1, MAX_ORDER + 1):
            grams, gram_counts = np.unique(_codes(symbols, events, order), return_counts=True)
            contexts, first, different = np.unique(grams >> BITS, return_index=True, return_counts=True)
            context_counts = np.add.reduceat(gram_counts, first) if len(first) else gram_counts
            self.orders.append(_Counts(grams, gram_counts, contexts, context_counts, different))

    def negative_log_likelihoods(self, texts: Sequence[str]) -> np.ndarray:
        """−ln P of each text and its end, by each order (MAX_ORDER, N), in nats."""
        import numpy as np

        symbols, events, of_text = _symbols(texts)
        found = np.zeros((MAX_ORDER, len(texts)))
        probability = np.full(len(events), 1 / SYMBOLS)
        for at, counts in enumerate(self.orders):
            grams = _codes(symbols, events, at + 1)
            together = _looked_up(grams, counts.grams, counts.gram_counts)
            context = grams >> BITS
            alone = _looked_up(context, counts.contexts, counts.context_counts)
            different = _looked_up(context, counts.contexts, counts.different)
            seen = alone > 0
            probability = np.where(
                seen, (together + different * probability) / np.where(seen, alone + different, 1), probability
            )
            found[at] = np.bincount(of_text, weights=-np.log(probability), minlength=len(texts))
        return found


def _symbols(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All texts as one row of symbols, enough edges before each; where a symbol is to be predicted; of which text."""
    import numpy as np

    edge = np.full(MAX_ORDER - 1, EDGE, dtype=np.int64)
    encoded = [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
    symbols = np.concatenate([part for one in encoded for part in (edge, one)] + [edge])
    lengths = np.array([len(one) + 1 for one in encoded], dtype=np.int64)
    of_text = np.repeat(np.arange(len(texts)), lengths)
    # A text's last event is the first of the edges after it.
    ends = np.cumsum(lengths)
    within = np.arange(len(of_text)) - np.repeat(ends - lengths, lengths)
    starts = np.cumsum(np.r_[0, lengths[:-1] - 1 + len(edge)]) + len(edge) if len(texts) else lengths
    return symbols, starts[of_text] + within, of_text


def _codes(symbols: np.ndarray, events: np.ndarray, order: int) -> np.ndarray:
    """Each event's symbol with the `order` − 1 before it, as one integer; the symbol in the lowest bits."""
    import numpy as np

    codes = np.zeros(len(events), dtype=np.int64)
    for back in range(order - 1, -1, -1):
        codes = codes << BITS | symbols[events - back]
    return codes


def _looked_up(wanted: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each wanted integer, 0 where it is not known.   known: sorted."""
    import numpy as np

    if not len(known):
        return np.zeros(len(wanted), dtype=np.int64)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: np.ndarray = np.where(known[at] == wanted, values[at], 0)
    return found


def ngram_costs(
    texts: Mapping[str, list[list[str]]],
) -> tuple[dict[str, pa.Array], dict[str, np.ndarray], dict[str, Any]]:
    """−ln P of each row's texts by counts of bytes of train, in nats, and their bytes, for validation and test; and
    what was chosen on validation.   texts: of each split's rows."""
    import numpy as np
    import pyarrow as pa

    model = ByteNgrams([text for row in texts["train"] for text in row])
    found = {}
    for split in ("validation", "test"):
        of_row = np.repeat(np.arange(len(texts[split])), [len(row) for row in texts[split]])
        by_order = model.negative_log_likelihoods([text for row in texts[split] for text in row])
        found[split] = [np.bincount(of_row, weights=costs, minlength=len(texts[split])) for costs in by_order]
    sizes = {split: np.array([sum(len(text.encode()) for text in row) for row in texts[split]]) for split in found}
    total = max(int(sizes["validation"].sum()), 1) * math.log(2)
    bits = [float(costs.sum()) / total for costs in found["validation"]]
    order = min(range(MAX_ORDER), key=bits.__getitem__)
    nothing = {split: np.array([not row for row in texts[split]], dtype=bool) for split in found}
    return (
        {split: pa.array(costs[order], mask=nothing[split]) for split, costs in found.items()},
        sizes,
        {"order": order + 1, "validation_bits_per_byte_by_order": bits, "every_nth_row_of_train": model.step},
    )
