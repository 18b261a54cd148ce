"""Masked language modelling: pretraining an encoder on plain text, from scratch or on from a base model.

Of each row's tokens 15% are asked for (Devlin et al. 2019): 80% of these are hidden behind the mask token, 10% replaced
by any token of the vocabulary, 10% left. Training draws them anew in each epoch, by (seed, epoch, row) alone; judged is
by one draw for each row, the same whatever the seed, so that two models answer the same questions.

Metrics, of the tokens asked for: bits and perplexity (of each token given the rest of its row; not the perplexity of a
text), accuracy, and the bits saved against unigram frequencies: those of the tokens of the same split that stayed
visible, plus one, so what the reference knows the model was shown too. A baseline from text alone there is not, since
what a token is, the base model says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright import params as params_module
from tunewright.classification import padded
from tunewright.errors import UserError
from tunewright.task import Baseline, Likelihood, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer

IGNORED = -100
"""The label of a token that is not asked for, as everywhere in PyTorch and Transformers."""
MASKED, REPLACED = 0.8, 0.1
"""Shares of the tokens asked for; the rest is left as it is."""


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for masked language modelling."""

    type: Literal["masked_lm"]
    mlm_probability: float = Field(default=0.15, gt=0, lt=1, description="of each row's tokens: those asked for")


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    metric_names: ClassVar[tuple[str, ...]] = ("masked_bits", "masked_perplexity", "masked_accuracy", "bits_saved")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"masked_bits", "masked_perplexity"})
    pretrained: ClassVar[bool] = True
    likelihood: ClassVar[Likelihood] = "masked"
    in_percent: ClassVar[frozenset[str]] = frozenset({"masked_accuracy"})
    score_name: ClassVar[str] = "masked_accuracy"
    examples_title: ClassVar[str] = "Rows that it knows least"
    pipeline_tag: ClassVar[str] = "fill-mask"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; a longer one is cut into several inputs, so that nothing is lost.

        labels: each token, or IGNORED for the special ones, which are never asked for. mask_token_id and vocab_size
        are the same in every row; draw is the number by which the row's masks are drawn.

        Raises
            UserError  where the base model has no mask token.
        """
        import hashlib

        mask = tokenizer.id_of("mask_token")
        if mask is None:
            raise UserError(
                "task.type: masked_lm needs a base model whose tokenizer has a mask token, such as BERT's; found none."
            )
        backend = tokenizer.backend
        backend.no_padding()
        backend.enable_truncation(max_length)
        special = tokenizer.mark_ids
        found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "tokens_before", "row", "draw")}
        ids = rows.column("row_id").to_pylist()
        for row, encoding in enumerate(backend.encode_batch(rows.column("text").to_pylist())):
            for piece, part in enumerate([encoding, *encoding.overflowing]):
                found["input_ids"].append(part.ids)
                found["labels"].append([IGNORED if token in special else token for token in part.ids])
                found["tokens_before"].append(len(part.ids))
                found["row"].append(row)
                drawn = hashlib.sha256(f"{ids[row]}\0{piece}".encode()).digest()
                found["draw"].append(int.from_bytes(drawn[:4]))
        count = len(found["row"])
        return {**found, "mask_token_id": [mask] * count, "vocab_size": [backend.get_vocab_size()] * count}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """An encoder with the head that it was pretrained with, where the folder has it."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM.from_pretrained(folder, use_safetensors=True, **settings)

    def from_config(self, config: Any) -> Any:
        """An encoder with its head, with new weights."""
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM.from_config(config)

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the body. Its last layer is tied to the token embeddings in most models."""
        return [module for module in model.children() if module is not model.base_model]

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch, with the masks by which a model is judged."""
        return self._masked(rows, pad_token_id, ())

    def collate_for_training(
        self, rows: list[dict[str, Any]], pad_token_id: int, seed: int, epoch: int
    ) -> dict[str, Any]:
        """The same with other masks in each epoch."""
        return self._masked(rows, pad_token_id, (seed, epoch))

    def _masked(self, rows: list[dict[str, Any]], pad_token_id: int, drawn_by: tuple[int, ...]) -> dict[str, Any]:
        import numpy as np
        import torch
        from torch.nn.utils.rnn import pad_sequence

        inputs, labels = [], []
        for row in rows:
            random = np.random.default_rng([*drawn_by, row["draw"]])
            ids, asked = masked(
                np.asarray(row["input_ids"]),
                np.asarray(row["labels"]),
                random,
                self.params.mlm_probability,
                row["mask_token_id"],
                row["vocab_size"],
            )
            inputs.append({"input_ids": ids})
            labels.append(torch.from_numpy(asked))
        return {
            **padded(inputs, pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """For each row, of its tokens asked for: nll (nats, summed), tokens, hits; unigram_nll and unigram_hits of the
        reference."""
        import numpy as np
        import pyarrow as pa

        from tunewright.likelihood import costs_of_asked, token_batches

        inputs = tokens.to_pylist()
        vocabulary = inputs[0]["vocab_size"] if inputs else 1
        batches = token_batches([row["length"] for row in inputs], how.batch_size, vocabulary, how.max_tokens)
        collated = [self.collate([inputs[row] for row in batch], tokenizer.pad_token_id) for batch in batches]
        visible = np.ones(vocabulary)
        for batch in collated:
            shown = (batch["labels"] == IGNORED) & (batch["attention_mask"] == 1)
            visible += np.bincount(batch["input_ids"][shown].numpy(), minlength=vocabulary)
        visible[tokenizer.mark_ids] = 1

        of_row = {row_id: at for at, row_id in enumerate(rows.column("row_id").to_pylist())}
        members = [[of_row[inputs[row]["row_id"]] for row in batch] for batch in batches]
        return pa.table(
            costs_of_asked(model, collated, members, len(of_row), lambda labels: labels != IGNORED, visible)
        )

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """Sums over the rows, each as often as it counts, divided at the end."""
        import numpy as np

        nll, tokens, hits, unigram = (predictions[name].to_numpy() for name in ("nll", "tokens", "hits", "unigram_nll"))

        def a_token(values: np.ndarray) -> Statistic:
            return lambda weights: (weights @ values) / np.maximum(weights @ tokens, 1)

        return {
            "masked_bits": a_token(nll / np.log(2)),
            "masked_perplexity": lambda weights: np.exp(a_token(nll)(weights)),
            "masked_accuracy": a_token(hits),
            "bits_saved": a_token((unigram - nll) / np.log(2)),
        }

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """The share of each row's tokens asked for that was found."""
        import numpy as np

        hits, tokens = predictions["hits"].to_numpy(), predictions["tokens"].to_numpy()
        found: np.ndarray = np.where(tokens > 0, hits / np.maximum(tokens, 1), np.nan)
        return found

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """How many tokens were asked for, and what their frequencies alone reach."""
        import numpy as np

        tokens = float(np.sum(predictions["tokens"].to_numpy()))
        unigram = {name: float(np.sum(predictions[f"unigram_{name}"].to_numpy())) for name in ("nll", "hits")}
        return {
            "tokens_asked_for": int(tokens),
            "unigram_bits": unigram["nll"] / max(tokens, 1) / float(np.log(2)),
            "unigram_accuracy": unigram["hits"] / max(tokens, 1),
        }

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """None: see this module's docstring."""
        return Baseline("none: what a token is, the base model says", {})


def masked(
    input_ids: np.ndarray, labels: np.ndarray, random: np.random.Generator, share: float, mask: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the tokens that are asked for, and hide them: of all that may be, share · n, rounded, and at least one.

    input_ids, labels: (T,), where labels are IGNORED for what is never asked for. Returns both anew: what the model is
    shown, and the labels of what it is asked for.
    """
    import numpy as np

    ids, asked = input_ids.astype(np.int64), np.full(len(labels), IGNORED, dtype=np.int64)
    candidates = np.flatnonzero(labels != IGNORED)
    count = min(len(candidates), max(1, round(share * len(candidates))))
    chosen = random.permutation(candidates)[:count]
    asked[chosen] = labels[chosen]
    how = random.random(count)
    ids[chosen[how < MASKED]] = mask
    replaced = chosen[(how >= MASKED) & (how < MASKED + REPLACED)]
    ids[replaced] = random.integers(vocab_size, size=len(replaced))
    return ids, asked
