"""Which tokens made a model say what it says: integrated gradients, the words they belong to, and a test by deletion.

Integrated gradients of a function F of the token embeddings, from a baseline b to the input x, summed over each token's
embedding: (x − b) · ∫₀¹ ∇F(b + α(x − b)) dα. They sum to F(x) − F(b) (completeness), up to the error of the sum that
stands for the integral: the convergence delta. The baseline has the pad token in each place but those of special tokens
and of an answer. Heavy to call, light to import.

Sources: M. Sundararajan, A. Taly, Q. Yan, Axiomatic attribution for deep networks, ICML 2017; N. Kokhlikyan et al.,
Captum, arXiv:2009.07896. Deletion: W. Samek et al., Evaluating the visualization of what a deep neural network has
learned, IEEE TNNLS 28 (2017); J. DeYoung et al., ERASER, ACL 2020 ("comprehensiveness").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tunewright.batches import sorted_batches
from tunewright.compute import decoder_inputs
from tunewright.likelihood import LOGITS_AT_ONCE, padded
from tunewright.losses import IGNORED
from tunewright.words import word_spans

if TYPE_CHECKING:
    import numpy as np

    from tunewright.tokenizer import ModelTokenizer

TOKENS_AT_ONCE = 2048
"""Padded tokens that go through the model at once, with their gradients."""
BLANKS = {"\n": "⏎", "\t": "⇥"}

Shown = Literal["softmax", "sigmoid", "output", "likelihood"]
"""What a deletion is measured by: a class's probability, a label's own probability, the output as it is, or of an
answer's tokens the geometric mean of their probabilities."""


@dataclass(frozen=True)
class Asked:
    """One input, and what is asked of it."""

    input_ids: list[int]
    """Of the text, or of the prompt."""
    label: int = 0
    """Whose logit it is about, where there is no answer."""
    answer: tuple[int, ...] = ()
    """The tokens whose log-probabilities are summed up, each after those before it."""


@dataclass(frozen=True)
class Attribution:
    """What each token of an input adds to the value."""

    tokens: np.ndarray
    """(T,) in float64."""
    value: float
    """F(x): the logit, or the log-probability of the answer in nats."""
    baseline: float
    """F(b)."""

    @property
    def delta(self) -> float:
        """How far the attributions are from summing to F(x) − F(b): |Σ − (F(x) − F(b))|."""
        return abs(float(self.tokens.sum()) - (self.value - self.baseline))


@dataclass(frozen=True)
class Unit:
    """A word of an input as it is shown, or a special token, and its places among the tokens."""

    text: str
    tokens: list[int]
    special: bool


class Explainer:
    """A model that is asked for the reasons of its answers.

    answers: whether it writes text, so that `Asked.answer` counts; else it gives logits (B, L), and `Asked.label` does.
    """

    def __init__(self, model: Any, pad_token_id: int, *, answers: bool) -> None:
        self.model = model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # only the embeddings' gradients are wanted
        self.pad_token_id = pad_token_id
        self.answers = answers
        self.two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
        self.embeddings = _embeddings(model, self.two_sided)

    def attribute(self, asked: Sequence[Asked], kept: Sequence[Sequence[bool]], n_steps: int) -> list[Attribution]:
        """The integrated gradients of each input, in their order.

        kept: of each input's tokens, those that stand in the baseline too: special tokens. Their share is 0.
        n_steps: points of the Gauss-Legendre quadrature that stands for the integral.
        """
        import torch
        from captum.attr import LayerIntegratedGradients

        gradients = LayerIntegratedGradients(self._values, self.embeddings)
        found: list[Attribution | None] = [None] * len(asked)
        # Few rows of like length, all points of each in one pass: the least padding.
        for batch in self._batches(asked, TOKENS_AT_ONCE // n_steps):
            ids, more = self._inputs([asked[row] for row in batch])
            held = torch.ones_like(ids, dtype=torch.bool)
            for at, row in enumerate(batch):
                held[at, : len(kept[row])] = torch.tensor(list(kept[row]))
            baseline = torch.where(held, ids, self.pad_token_id)
            room = max(1, self._tokens_at_once() // max(ids.shape[1], 1))
            # Captum takes at least one point of every row at once.
            parts = gradients.attribute(
                ids,
                baselines=baseline,
                additional_forward_args=more,
                n_steps=n_steps,
                internal_batch_size=max(len(batch), room),
            )
            with torch.no_grad():
                values = self._values(ids, *more).double()
                with _replaced(self.embeddings, self.embeddings(baseline)):
                    # By a hook, not by the baseline's ids: some models take positions, or the last token, from the ids.
                    baselines = self._values(ids, *more).double()
            for at, row in enumerate(batch):
                sums = parts[at].double().sum(dim=-1)[: len(asked[row].input_ids)]
                found[row] = Attribution(sums.cpu().numpy(), float(values[at]), float(baselines[at]))
        return [one for one in found if one is not None]

    def measure(self, asked: Sequence[Asked], shown: Shown) -> np.ndarray:
        """What each input gives (N,), in float64. See `Shown`."""
        import numpy as np
        import torch

        found = np.zeros(len(asked))
        with torch.inference_mode():
            for batch in self._batches(asked, TOKENS_AT_ONCE):
                rows = [asked[row] for row in batch]
                ids, more = self._inputs(rows)
                if shown == "likelihood":
                    sizes = torch.tensor([max(len(row.answer), 1) for row in rows])
                    values = (self._values(ids, *more).double().cpu() / sizes).exp()
                else:
                    logits = self._logits(ids, more[0]).double().cpu()
                    if shown != "output":
                        logits = logits.softmax(dim=-1) if shown == "softmax" else logits.sigmoid()
                    values = logits[torch.arange(len(rows)), torch.tensor([row.label for row in rows])]
                found[batch] = values.numpy()
        return found

    def logits(self, inputs: Sequence[list[int]]) -> np.ndarray:
        """The logits of each input (N, L), in float64."""
        import numpy as np
        import torch

        asked = [Asked(ids) for ids in inputs]
        found: list[Any] = [None] * len(asked)
        with torch.inference_mode():
            for batch in self._batches(asked, TOKENS_AT_ONCE):
                ids, more = self._inputs([asked[row] for row in batch])
                for row, of_row in zip(batch, self._logits(ids, more[0]).double().cpu().numpy(), strict=True):
                    found[row] = of_row
        return np.stack(found)

    def vectors(self, inputs: Sequence[list[int]]) -> np.ndarray:
        """The mean of each input's last hidden states, of length 1: (N, hidden), whose products are cosines."""
        import numpy as np
        import torch

        asked = [Asked(ids) for ids in inputs]
        found: list[Any] = [None] * len(asked)
        with torch.inference_mode():
            for batch in self._batches(asked, TOKENS_AT_ONCE):
                ids, more = self._inputs([asked[row] for row in batch])
                output = self.model(input_ids=ids, attention_mask=more[0], output_hidden_states=True)
                hidden = output.hidden_states[-1][:, -ids.shape[1] :].float()
                mask = more[0].unsqueeze(-1)
                # A sum has its mean's direction.
                means = torch.nn.functional.normalize((hidden * mask).sum(dim=1), dim=-1)
                for row, of_row in zip(batch, means.cpu().numpy(), strict=True):
                    found[row] = of_row
        return np.stack(found)

    def _values(self, ids: Any, mask: Any, targets: Any) -> Any:
        """F of each row (B,): the logit of its label, or the log-probability of its answer in nats.

        ids, mask: (B, T), the answer behind the prompt where one model reads both.
        targets: (B, 1) labels; or (B, T) the answer in its places and −100 elsewhere; (B, T') of an encoder-decoder.
        """
        import torch

        if not self.answers:
            return self._logits(ids, mask).gather(1, targets).squeeze(1)
        if self.two_sided:
            logits = self.model(input_ids=ids, attention_mask=mask, **decoder_inputs(self.model, targets)).logits
            wanted = targets
        else:
            # Virtual tokens of a prompt or prefix can have logits of their own, in front.
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :][:, :-1]
            wanted = targets[:, 1:]
        costs = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
        )
        return -costs.sum(dim=1)

    def _logits(self, ids: Any, mask: Any) -> Any:
        return self.model(input_ids=ids, attention_mask=mask).logits.float()

    def _inputs(self, asked: Sequence[Asked]) -> tuple[Any, tuple[Any, Any]]:
        """The ids (B, T) of one batch, their mask, and the targets as `_values` takes them."""
        import torch

        behind = self.answers and not self.two_sided
        rows = [[*one.input_ids, *one.answer] if behind else one.input_ids for one in asked]
        rows = [row or [self.pad_token_id] for row in rows]
        if not self.answers:
            targets = torch.tensor([[one.label] for one in asked])
        elif self.two_sided:
            targets = padded([one.answer for one in asked], IGNORED)
        else:
            targets = padded([[IGNORED] * len(one.input_ids) + list(one.answer) for one in asked], IGNORED)
        place = self.model.device
        mask = padded([[1] * len(row) for row in rows], 0)
        return padded(rows, self.pad_token_id).to(place), (mask.to(place), targets.to(place))

    def _batches(self, asked: Sequence[Asked], tokens: int) -> list[list[int]]:
        """Rows of like length; where an answer's logits are computed, as many fewer as the vocabulary is large."""
        lengths = [max(len(one.input_ids) + len(one.answer), 1) for one in asked]
        return sorted_batches(lengths, 1, min(tokens, self._tokens_at_once()))

    def _tokens_at_once(self) -> int:
        if not self.answers:
            return TOKENS_AT_ONCE
        vocabulary: int = self.model.config.get_text_config(decoder=True).vocab_size
        return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // (4 * vocabulary)))  # logits, log-probabilities, gradients


def _embeddings(model: Any, two_sided: bool) -> Any:
    """The module that turns the tokens of an input into vectors, which one call of the model asks once."""
    virtual = {getattr(found, "peft_type", None) for found in getattr(model, "peft_config", {}).values()}
    if virtual and "PREFIX_TUNING" not in virtual:
        return model.word_embeddings  # where the virtual tokens of a prompt are set in front, PEFT asks it itself
    # The decoder of a pair embeds too: by the same weights, and by a module of its own.
    return (model.get_encoder() if two_sided else model).get_input_embeddings()


@contextmanager
def _replaced(module: Any, output: Any) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


def units(ids: Sequence[int], source: str | None, tokenizer: ModelTokenizer) -> tuple[str, list[Unit], list[range]]:
    """The words of an input, by the tokens' places in its text: pieces of one word are one unit.

    source: the text that the tokens are of, where it is known; else the tokens are decoded. Where neither text gives
    these tokens again, each token is a unit of its own.
    Gives the text, its units in their order, and where each stands in the text.
    """
    backend = tokenizer.backend
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    backend.no_padding()
    for text, added in ((source, True), (backend.decode(list(ids), skip_special_tokens=False), False)):
        if text is None:
            continue
        backend.no_truncation()
        if added:
            backend.enable_truncation(len(ids))
        encoding = backend.encode(text, add_special_tokens=added)
        backend.no_truncation()
        if encoding.ids == list(ids):
            # The sign of an unknown word is a special token too, but stands for a word.
            marked = [
                bool(extra) or (number in special and text[start:end].strip() == token.strip())
                for number, token, extra, (start, end) in zip(
                    encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
                )
            ]
            return text, *_grouped(text, encoding, marked)
    found, places, text = [], [], ""
    for at, number in enumerate(ids):
        piece = backend.decode([number], skip_special_tokens=False)
        places.append(range(len(text), len(text) + len(piece)))
        found.append(Unit(_visible(piece), [at], number in special))
        text += piece
    return text, found, places


def _grouped(text: str, encoding: Any, special: Sequence[bool]) -> tuple[list[Unit], list[range]]:
    words = word_spans(text)
    of_character = {at: number for number, (start, end) in enumerate(words) for at in range(start, end)}
    found: list[Unit] = []
    places: list[range] = []
    last: int | None = None
    for at, (start, end) in enumerate(encoding.offsets):
        if special[at]:
            found.append(Unit(encoding.tokens[at], [at], special=True))
            places.append(range(start, end))
            last = None
            continue
        piece = text[start:end]
        first = start + len(piece) - len(piece.lstrip())
        word = of_character.get(first)
        if word is not None and word == last:
            place = range(places[-1].start, max(end, places[-1].stop))
            found[-1] = Unit(_visible(text[place.start : place.stop]), [*found[-1].tokens, at], special=False)
            places[-1] = place
        else:
            place = range(min(first, end), end)
            found.append(Unit(_visible(text[place.start : place.stop] or piece), [at], special=False))
            places.append(place)
        last = word
    return found, places


def _visible(piece: str) -> str:
    """A word without the space around it; of blanks alone, signs for them."""
    return piece.strip() or "".join(BLANKS.get(sign, "␣") for sign in piece)


def hidden(found: Sequence[Unit], places: Sequence[range], values: Sequence[tuple[int, int, str]]) -> list[Unit]:
    """The units with what is personal taken out: all that a value reaches into become one unit, its placeholder.

    values: first character, the character behind the last, placeholder; see `privacy.placeholders`.
    """
    shown: list[Unit] = []
    last: int | None = None
    for unit, place in zip(found, places, strict=True):
        at = next(
            (number for number, (start, end, _) in enumerate(values) if place.start < end and start < place.stop), None
        )
        if at is None or unit.special:
            shown.append(unit)
            last = None
        elif at == last:
            shown[-1] = Unit(shown[-1].text, [*shown[-1].tokens, *unit.tokens], special=False)
        else:
            shown.append(Unit(values[at][2], unit.tokens, special=False))
            last = at
    return shown


def summed(attribution: np.ndarray, found: Sequence[Unit]) -> np.ndarray:
    """Each unit's attribution: the sum over its tokens (N,)."""
    import numpy as np

    return np.array([attribution[unit.tokens].sum() for unit in found], dtype=np.float64)


def deletions(
    asked: Asked, found: Sequence[Unit], scores: np.ndarray, fractions: Sequence[float], draws: int, seed: int
) -> list[list[Asked]]:
    """The input with ever more words taken out: first those of the highest scores, then `draws` times at random.

    Of each of the 1 + draws orders a list: the input as it is, then without each fraction of its words, rounded up.
    Special tokens stay.
    """
    import numpy as np

    words = [at for at, unit in enumerate(found) if not unit.special]
    ranked = sorted(words, key=lambda at: -scores[at])
    random = np.random.default_rng(seed)
    orders = [ranked, *([words[at] for at in random.permutation(len(words))] for _ in range(draws))]
    every = []
    for order in orders:
        lines = [asked]
        for fraction in fractions:
            gone = {token for at in order[: math.ceil(fraction * len(order))] for token in found[at].tokens}
            ids = [number for at, number in enumerate(asked.input_ids) if at not in gone]
            lines.append(Asked(ids, asked.label, asked.answer))
        every.append(lines)
    return every


def area_between(fractions: Sequence[float], top: np.ndarray, at_random: np.ndarray) -> np.ndarray:
    """The mean distance of each row's curve at random above its curve by attribution (N,): above 0, the words that were
    said to matter mattered more than others. By the trapezoidal rule over (0, *fractions).

    top, at_random: (N, 1 + fractions).
    """
    import numpy as np

    ends = np.array([0.0, *fractions])
    area: np.ndarray = np.trapezoid(at_random - top, ends, axis=1) / ends[-1]
    return area


def top_words(
    rows: Sequence[tuple[str, Sequence[Unit], np.ndarray]], min_rows: int, count: int
) -> dict[str, list[tuple[str, int, float]]]:
    """Of each label the words with the highest mean attribution over the rows that they stand in: word, rows, mean.

    rows: label, units, attributions. A word that stands in a row several times counts by its mean there; without case.
    min_rows: a word in fewer rows is left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for label, of_row, values in rows:
        inside: dict[str, list[float]] = {}
        for unit, value in zip(of_row, values, strict=True):
            if not unit.special and any(sign.isalnum() for sign in unit.text):
                inside.setdefault(unit.text.casefold(), []).append(float(value))
        for word, own in inside.items():
            found.setdefault(label, {}).setdefault(word, []).append(sum(own) / len(own))
    return {
        label: sorted(
            ((word, len(own), sum(own) / len(own)) for word, own in of_label.items() if len(own) >= min_rows),
            key=lambda entry: (-entry[2], entry[0]),
        )[:count]
        for label, of_label in found.items()
    }


def neighbours(vectors: np.ndarray, known: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """The nearest of `known` (M, H) to each of `vectors` (N, H), both of length 1: place and cosine, the nearest first;
    of equals the first."""
    import numpy as np

    cosines = vectors @ known.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [[(int(at), float(row[at])) for at in places] for row, places in zip(cosines, order, strict=True)]
