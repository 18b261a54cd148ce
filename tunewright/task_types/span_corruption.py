"""Span corruption: pretraining an encoder-decoder on plain text, from scratch or on from a base model.

Of each row's tokens 15% are hidden, in spans of 3 on average (Raffel et al. 2020, the objective of T5). In what the
encoder reads, each span is replaced by a sentinel: <extra_id_0> for the first, <extra_id_1> for the second, … The
decoder is to write each sentinel and the tokens that it stands for, one sentinel more, and the end. Training draws the
spans anew in each epoch, by (seed, epoch, row) alone; judged is by one draw for each row, the same whatever the seed,
so that two models answer the same questions.

T5's own code ends every row in a span, which in 512 tokens is one of many; a tweet has a single span, and it would
always be its end. Here every way to place the spans is as likely, at both ends too.

Metrics, of the hidden tokens, each after those of its target that stand before it; neither sentinels nor the end
count: bits and perplexity a token, accuracy, and the bits saved against unigram frequencies: those of the tokens of the
same split that stayed visible, plus one, so what the reference knows the model was shown too. A baseline from text
alone there is not, since what a token is, the base model says.

Source: C. Raffel, N. Shazeer, A. Roberts, K. Lee, S. Narang, M. Matena, Y. Zhou, W. Li, P. J. Liu, Exploring the limits
of transfer learning with a unified text-to-text transformer, JMLR 21, 2020, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright import params as params_module
from tunewright.classification import padded
from tunewright.errors import UserError
from tunewright.task import Architecture, Baseline, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer

IGNORED = -100
"""The label of a token that is not asked for, as everywhere in PyTorch and Transformers."""


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for span corruption. The names are those of T5's own code."""

    type: Literal["span_corruption"]
    noise_density: float = Field(default=0.15, gt=0, le=0.5, description="of each row's tokens: those hidden")
    mean_noise_span_length: float = Field(default=3.0, ge=1, le=1000, description="tokens of a span, on average")


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    metric_names: ClassVar[tuple[str, ...]] = ("span_bits", "span_perplexity", "span_accuracy", "bits_saved")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"span_bits", "span_perplexity"})
    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder_decoder",)
    pretrained: ClassVar[bool] = True
    in_percent: ClassVar[frozenset[str]] = frozenset({"span_accuracy"})
    score_name: ClassVar[str] = "span_accuracy"
    examples_title: ClassVar[str] = "Rows that it knows least"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; a longer one is cut into several inputs, so that nothing is lost.

        labels: each token, or IGNORED for the special ones, which are never hidden. sentinels: as many as the input can
        need; end: the token that ends a text, the same in every row. draw is the number by which the spans are drawn.

        Raises
            UserError  where the tokenizer has no sentinels, fewer than a row needs, or no token that ends a text.
        """
        import hashlib

        sentinels, end = _sentinels(tokenizer), tokenizer.id_of("eos_token")
        if not sentinels or end is None:
            lacking = "sentinel <extra_id_0>" if not sentinels else "eos_token"
            raise UserError(
                "task.type: span_corruption needs an encoder-decoder whose tokenizer has an eos_token and sentinels "
                f"<extra_id_0>, <extra_id_1>, …; found no {lacking}. Take a T5, or an encoder-decoder from scratch "
                "with init_model.from_scratch.extra_ids: 100."
            )
        backend = tokenizer.backend
        backend.no_padding()
        backend.no_truncation()
        added = [] if backend.encode("").ids[-1:] == [end] else [end]
        backend.enable_truncation(max_length - len(added))
        special = {*tokenizer.mark_ids, *sentinels}
        names = ("input_ids", "labels", "tokens_before", "row", "draw", "sentinels")
        found: dict[str, list[Any]] = {name: [] for name in names}
        ids = rows.column("row_id").to_pylist()
        for row, encoding in enumerate(backend.encode_batch(rows.column("text").to_pylist())):
            for piece, part in enumerate([encoding, *encoding.overflowing]):
                tokens = part.ids + added
                labels = [IGNORED if token in special else token for token in tokens]
                found["input_ids"].append(tokens)
                found["labels"].append(labels)
                found["tokens_before"].append(len(tokens))
                found["row"].append(row)
                drawn = hashlib.sha256(f"{ids[row]}\0{piece}".encode()).digest()
                found["draw"].append(int.from_bytes(drawn[:4]))
                found["sentinels"].append(self._needed(labels, sentinels))
        return {**found, "end": [end] * len(found["row"])}

    def _needed(self, labels: Sequence[int], sentinels: list[int]) -> list[int]:
        """One for each span, one more for each special token that can break a span in two, and one that closes."""
        may_be = [at for at, label in enumerate(labels) if label != IGNORED]
        breaks = sum(then - before > 1 for before, then in pairwise(may_be))
        count = self._counts(len(may_be))[1] + breaks + 1
        if count > len(sentinels):
            raise UserError(
                f"task.type: span_corruption needs {count} sentinels for a row of {len(labels)} tokens; the base "
                f"model's tokenizer has {len(sentinels)}. Raise init_model.from_scratch.extra_ids or "
                "task.mean_noise_span_length, or lower tokenize.max_length."
            )
        return sentinels[:count]

    def _counts(self, tokens: int) -> tuple[int, int]:
        """How many of so many tokens are hidden, one at least, and in how many spans, between any two of which a token
        stays."""
        hidden = min(tokens, max(1, round(self.params.noise_density * tokens)))
        count = min(hidden, max(1, round(hidden / self.params.mean_noise_span_length)), tokens - hidden + 1)
        return hidden, count

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """The encoder-decoder of the folder.

        Raises
            UserError  when the folder holds none.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        config = AutoConfig.from_pretrained(folder)
        if not config.is_encoder_decoder:
            raise UserError(
                "task.type: span_corruption takes an encoder-decoder such as T5; the base model is of type "
                f"{config.model_type}. An encoder is pretrained by task.type: masked_lm, a decoder by causal_lm."
            )
        return AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, **settings)

    def from_config(self, config: Any) -> Any:
        """An encoder-decoder with new weights."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM.from_config(config)

    def head_modules(self, model: Any) -> list[Any]:
        """None: an encoder-decoder that was trained as one has nothing new."""
        return []

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest input and the longest target of the batch, with the spans by which a model is judged.

        input_ids and attention_mask (B, T), labels (B, T'), IGNORED where they are padded. What the decoder reads is
        made of the labels by the model: they are shifted by one, behind its start token.
        """
        return self._corrupted(rows, pad_token_id, ())

    def collate_for_training(
        self, rows: list[dict[str, Any]], pad_token_id: int, seed: int, epoch: int
    ) -> dict[str, Any]:
        """The same with other spans in each epoch."""
        return self._corrupted(rows, pad_token_id, (seed, epoch))

    def _corrupted(self, rows: list[dict[str, Any]], pad_token_id: int, drawn_by: tuple[int, ...]) -> dict[str, Any]:
        import numpy as np
        import torch
        from torch.nn.utils.rnn import pad_sequence

        inputs, targets = [], []
        for row in rows:
            random = np.random.default_rng([*drawn_by, row["draw"]])
            may_be = np.asarray(row["labels"]) != IGNORED
            hidden = np.zeros(len(may_be), dtype=bool)
            hidden[may_be] = spans(int(may_be.sum()), *self._counts(int(may_be.sum())), random)
            shown, target = corrupted(row["input_ids"], hidden, row["sentinels"], row["end"])
            inputs.append({"input_ids": shown})
            targets.append(torch.tensor(target, dtype=torch.int64))
        return {
            **padded(inputs, pad_token_id),
            "labels": pad_sequence(targets, batch_first=True, padding_value=IGNORED),
        }

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """For each row, of its hidden tokens: nll (nats, summed), tokens, hits; unigram_nll and unigram_hits of the
        reference."""
        import numpy as np
        import pyarrow as pa
        import torch

        from tunewright.likelihood import costs_of_asked, token_batches

        inputs = tokens.to_pylist()
        vocabulary = model.get_output_embeddings().weight.shape[0]
        batches = token_batches([row["length"] for row in inputs], how.batch_size, vocabulary, how.max_tokens)
        collated = [self.collate([inputs[row] for row in batch], tokenizer.pad_token_id) for batch in batches]
        # They stand in no span, and are no words of a text.
        marks = np.zeros(vocabulary, dtype=bool)
        marks[[*tokenizer.mark_ids, *_sentinels(tokenizer)]] = True
        visible = np.ones(vocabulary)
        for batch in collated:
            shown = batch["input_ids"][batch["attention_mask"] == 1]
            visible += np.bincount(shown.numpy(), minlength=vocabulary)
        visible[marks] = 1

        def asked(labels: Any) -> Any:
            return (labels != IGNORED) & ~torch.from_numpy(marks)[labels.clamp(min=0)]

        of_row = {row_id: at for at, row_id in enumerate(rows.column("row_id").to_pylist())}
        members = [[of_row[inputs[row]["row_id"]] for row in batch] for batch in batches]
        return pa.table(costs_of_asked(model, collated, members, len(of_row), asked, visible))

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """Sums over the rows, each as often as it counts, divided at the end."""
        import numpy as np

        nll, tokens, hits, unigram = (predictions[name].to_numpy() for name in ("nll", "tokens", "hits", "unigram_nll"))

        def a_token(values: np.ndarray) -> Statistic:
            return lambda weights: (weights @ values) / np.maximum(weights @ tokens, 1)

        return {
            "span_bits": a_token(nll / np.log(2)),
            "span_perplexity": lambda weights: np.exp(a_token(nll)(weights)),
            "span_accuracy": a_token(hits),
            "bits_saved": a_token((unigram - nll) / np.log(2)),
        }

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """The share of each row's hidden tokens that was found; NaN where nothing could be hidden."""
        import numpy as np

        hits, tokens = predictions["hits"].to_numpy(), predictions["tokens"].to_numpy()
        found: np.ndarray = np.where(tokens > 0, hits / np.maximum(tokens, 1), np.nan)
        return found

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """How many tokens were hidden, and what their frequencies alone reach."""
        import numpy as np

        tokens = float(np.sum(predictions["tokens"].to_numpy()))
        unigram = {name: float(np.sum(predictions[f"unigram_{name}"].to_numpy())) for name in ("nll", "hits")}
        return {
            "tokens_hidden": int(tokens),
            "unigram_bits": unigram["nll"] / max(tokens, 1) / float(np.log(2)),
            "unigram_accuracy": unigram["hits"] / max(tokens, 1),
        }

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """None: see this module's docstring."""
        return Baseline("none: what a token is, the base model says", {})


def _sentinels(tokenizer: ModelTokenizer) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, …, wherever in the vocabulary they stand: T5 has them at its end, the
    first last."""
    found: list[int] = []
    while (number := tokenizer.backend.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(number)
    return found


def spans(tokens: int, hidden: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Which of so many tokens are hidden (N,): `hidden` of them, in `count` spans, each way to do so equally likely.

    Between two spans a token stays at least; before the first and after the last there may be none.
    """
    import numpy as np

    if not tokens:
        return np.zeros(0, dtype=bool)
    inside = _parts(hidden, count, random)
    around = _parts(tokens - hidden + 2, count + 1, random)
    around[[0, -1]] -= 1
    lengths = np.empty(2 * count + 1, dtype=np.int64)
    lengths[0::2], lengths[1::2] = around, inside
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """A number as a sum of so many, each at least 1 (count,), each way to do so equally likely."""
    import numpy as np

    cuts = np.sort(random.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupted(
    input_ids: Sequence[int], hidden: Sequence[bool] | np.ndarray, sentinels: Sequence[int], end: int
) -> tuple[list[int], list[int]]:
    """What the encoder reads of a row, and what the decoder is to write.

    input_ids, hidden: (T,). Each run of hidden tokens is a span, and has the next sentinel.
    """
    shown: list[int] = []
    target: list[int] = []
    count = 0
    before = False
    for token, hides in zip(input_ids, hidden, strict=True):
        if hides and not before:
            shown.append(sentinels[count])
            target.append(sentinels[count])
            count += 1
        (target if hides else shown).append(token)
        before = bool(hides)
    return shown, [*target, sentinels[count], end]
