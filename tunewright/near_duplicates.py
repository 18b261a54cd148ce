"""Near duplicates: texts whose sets of character n-grams overlap by at least a given Jaccard similarity.

MinHash signatures (by rensa) are cut into bands; two texts that agree on a whole band are a candidate pair, and each
candidate pair is settled by the true similarity of its n-grams. Broder, "On the resemblance and containment of
documents" (1997); the bands as in Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.

No word is looked for, so that a script without spaces is treated as any other: spaces are left out, and a gram is 5
characters, or 2 where the first or the second is Han, Kana or Hangul, which says as much as two or three letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Hashes = npt.NDArray[np.uint64]
    Keys = npt.NDArray[np.uint32]

WIDTH = 5
DENSE_WIDTH = 2
PERMUTATIONS = 128
SEED = 1
RECALL = 0.99  # of pairs exactly at the threshold; of more similar ones it is higher

# What bounds the work where very many texts look alike. A text is compared with at most COMPARISONS others: those
# that share the most bands with it, among the FIRST and the LAST before it in each band.
FIRST = 3
LAST = 2
COMPARISONS = 8

MULTIPLIER = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio
CHUNK = 400_000  # characters that are hashed at once: some 20 MB


class Banding(NamedTuple):
    """How a signature is cut: `bands` × `rows` of its permutations."""

    bands: int
    rows: int


def banding(threshold: float) -> Banding:
    """The longest bands that still find RECALL of the pairs at the threshold t: 1 − (1 − tʳ)ᵇ ≥ RECALL."""
    found = Banding(PERMUTATIONS, 1)
    for rows in range(2, PERMUTATIONS + 1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            found = Banding(bands, rows)
    return found


def gram_hashes(forms: Sequence[str]) -> tuple[Hashes, Hashes]:
    """The n-grams of texts as 64-bit hashes, all in one array, and where each text's begin and end: (n + 1,).

    forms: texts in their match form, none empty. A text shorter than a gram is one gram as a whole.
    """
    import numpy as np

    stripped = [form.replace(" ", "").replace("\0", "") or "\ufffd" for form in forms]
    ending = "\0" * (WIDTH - 1)
    codes = np.frombuffer((ending.join(stripped) + ending).encode("utf-32-le"), np.uint32)
    lengths = np.fromiter(map(len, stripped), np.int64, len(stripped))
    starts = np.concatenate([[0], (lengths + len(ending)).cumsum()[:-1]])
    size = len(codes) - len(ending)

    wide = np.zeros(size, np.uint64)
    for place in range(WIDTH):
        wide = wide * np.uint64(MULTIPLIER) + codes[place : place + size]
        if place == DENSE_WIDTH - 1:
            narrow = wide
    dense = _dense(codes)
    follows = dense[: size - 1] & ~dense[1:size]
    dense = dense[:size] | dense[1 : size + 1]
    last = np.where(dense, codes[DENSE_WIDTH - 1 :][:size], codes[WIDTH - 1 :][:size])
    whole = last != 0
    whole[1:] |= follows  # what comes after a dense script is a gram, however short
    whole &= codes[:size] != 0
    whole[starts] = True
    hashes = _mixed(np.where(dense, narrow, wide)[whole])
    offsets = np.concatenate([[0], np.add.reduceat(whole, starts, dtype=np.int64).cumsum()]).astype(np.uint64)
    return hashes, offsets


def _dense(codes: Keys) -> npt.NDArray[np.bool_]:
    """Whether each character is Han, Kana or Hangul, or punctuation of theirs."""
    import numpy as np

    found = np.zeros(len(codes), bool)
    if len(codes) and codes.max() >= 0x3000:
        for low, high in ((0x3000, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)):
            found |= (codes >= low) & (codes <= high)
    return found


def _mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value: the finaliser of SplitMix64 (Steele et al., 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def band_keys(forms: Sequence[str], cut: Banding) -> Keys:
    """The keys of texts in each band, (bands, n): two texts that agree on a band have the same key in it.

    forms: texts in their match form, none empty.
    """
    import numpy as np

    keys = np.empty((cut.bands, len(forms)), np.uint32)
    start = 0
    while start < len(forms):
        stop, characters = start, 0
        while stop < len(forms) and (stop == start or characters + len(forms[stop]) <= CHUNK):
            characters += len(forms[stop])
            stop += 1
        keys[:, start:stop] = _band_keys(forms[start:stop], cut)
        start = stop
    return keys


def _band_keys(forms: Sequence[str], cut: Banding) -> Keys:
    import numpy as np
    from rensa import RMinHash

    hashes, offsets = gram_hashes(forms)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, cut.bands * cut.rows, SEED)
    signatures = np.array(matrix.to_rows(), np.uint32).reshape(len(forms), cut.bands, cut.rows)
    keys = np.zeros((len(forms), cut.bands), np.uint64)
    for row in range(cut.rows):
        keys = keys * np.uint64(MULTIPLIER) + signatures[:, :, row]
    return (_mixed(keys) >> np.uint64(32)).astype(np.uint32).T


def jaccard(one: str, other: str) -> float:
    """|A ∩ B| / |A ∪ B| of the sets of n-grams of two texts in their match form."""
    return _jaccard(_grams(one), _grams(other))


def _grams(form: str) -> Hashes:
    import numpy as np

    return np.unique(gram_hashes([form])[0])


def _jaccard(one: Hashes, other: Hashes) -> float:
    import numpy as np

    # Both are sorted and without equals; np.intersect1d would sort them together.
    shared = int(np.count_nonzero(other.take(np.searchsorted(other, one), mode="clip") == one))
    return shared / (len(one) + len(other) - shared)


def candidates(bands: Iterable[Keys]) -> tuple[Integers, Integers]:
    """Pairs of texts that share a band: (later, earlier), by later, then most bands in common first.

    bands: of each band the keys of all texts, (n,). At most COMPARISONS pairs of one later text.
    """
    import numpy as np

    pairs, counts, columns = np.zeros(0, np.int64), np.zeros(0, np.int64), 1
    for band in bands:
        columns = max(len(band), 1)
        every = np.arange(columns)
        order = np.argsort(band, kind="stable")
        new = np.ones(columns, bool)
        new[1:] = band[order[1:]] != band[order[:-1]]
        start = np.maximum.accumulate(np.where(new, every, 0))
        place = every - start
        found = [pairs]
        for step in range(FIRST):
            after = np.flatnonzero(place > step)
            found.append(order[after] * columns + order[start[after] + step])
        for step in range(1, LAST + 1):
            after = np.flatnonzero(place >= FIRST + step)
            found.append(order[after] * columns + order[after - step])
        if sum(map(len, found)) == len(pairs):
            continue
        weights = np.concatenate([counts, np.ones(sum(map(len, found)) - len(pairs), np.int64)])
        pairs, place_of = np.unique(np.concatenate(found), return_inverse=True)
        counts = np.bincount(place_of, weights).astype(np.int64)
        if len(pairs) > COMPARISONS * columns:
            best = np.sort(_best(pairs, counts, columns))
            pairs, counts = pairs[best], counts[best]
    later, earlier = np.divmod(pairs[_best(pairs, counts, columns)], columns)
    return later, earlier


def _best(pairs: Integers, counts: Integers, columns: int) -> Integers:
    """Where the COMPARISONS pairs of each later text stand that share most bands; by later text, most bands first."""
    import numpy as np

    later = pairs // columns
    order = np.lexsort((pairs, -counts, later))
    later = later[order]
    return order[np.arange(len(order)) - np.searchsorted(later, later) < COMPARISONS]


def representatives(
    bands: Iterable[Keys], forms_of: Sequence[Callable[[int], str]], threshold: float
) -> dict[int, tuple[int, float]]:
    """Which texts to leave out, so that no near duplicate is found among the rest.

    The texts are taken in their order, and one is left out where it is as similar as `threshold` to one that was kept
    before it. So of a chain, in which each is similar to the next only, about every other one is kept.

    bands: of each band the keys of all texts, (n,). forms_of: the match form of a text; and of what else stands beside
    it and must be as similar, as a target: the least similar counts.
    Returns each text left out → the text kept in its place, and their similarity.
    """
    sides = [lru_cache(maxsize=64)(lambda text, form_of=form_of: _grams(form_of(text))) for form_of in forms_of]
    found: dict[int, tuple[int, float]] = {}
    later, earlier = candidates(bands)
    for text, other in zip(later.tolist(), earlier.tolist(), strict=True):
        if text in found:
            continue
        kept = found[other][0] if other in found else other
        similarity = min(_jaccard(grams(text), grams(kept)) for grams in sides)
        if similarity >= threshold:
            found[text] = (kept, similarity)
    return found
