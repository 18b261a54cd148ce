"""What the tasks of language models do alike: a decoder that goes on with a text, a conversation or an instruction."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.chat_templates import BARE, NAMED, named_or_jinja
from tunewright.errors import UserError
from tunewright.task import Architecture, Baseline, LabelKind, Likelihood, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.chat_templates import ChatTemplate
    from tunewright.conversations import Conversation
    from tunewright.statistics import Statistic
    from tunewright.text_metrics import TextMetric
    from tunewright.tokenizer import ModelTokenizer

PLACE = "{text}"


def _with_a_place(template: str) -> str:
    if template.count(PLACE) != 1:
        raise ValueError(f"a prompt with one {PLACE} in it, where the row's text is put")
    return template


class LanguageModel(TaskType):
    """A decoder, judged by how likely it holds the texts to be.

    Two metrics of one thing: bits_per_byte, which can be compared between models with other tokenizers and with a
    model that counts bytes, and perplexity, of the tokens that this model's tokenizer makes.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("bits_per_byte", "perplexity")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"bits_per_byte", "perplexity"})
    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder",)
    pretrained: ClassVar[bool] = True
    likelihood: ClassVar[Likelihood] = "causal"
    examples_title: ClassVar[str] = "The texts that surprised it most"
    pipeline_tag: ClassVar[str] = "text-generation"

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch; labels (B, T) are −100 there."""
        from tunewright.likelihood import padded
        from tunewright.losses import IGNORED

        return {
            "input_ids": padded([row["input_ids"] for row in rows], pad_token_id),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A decoder with its language-modelling head, in float32."""
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            folder, **{"dtype": torch.float32, "use_safetensors": True, **settings}
        )

    def from_config(self, config: Any) -> Any:
        """A decoder with new weights."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(config)

    def head_modules(self, model: Any) -> list[Any]:
        """None: the head that writes tokens was pretrained too, and its weights are often the embeddings' own."""
        return []

    def opening(self, tokenizer: ModelTokenizer) -> list[int]:
        """The tokenizer's bos_token, else its eos_token."""
        start = tokenizer.id_of("bos_token")
        start = tokenizer.id_of("eos_token") if start is None else start
        return [] if start is None else [start]

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """nll (nats, over the counted tokens of all inputs of a row), tokens and bytes (that those stand for); null,
        0 and 0 for a row without any."""
        import numpy as np
        import pyarrow as pa

        from tunewright.likelihood import negative_log_likelihoods
        from tunewright.losses import IGNORED

        labels = tokens["labels"].to_pylist()
        costs = negative_log_likelihoods(
            model, tokens["input_ids"].to_pylist(), labels, how.batch_size, tokenizer.pad_token_id, how.max_tokens
        )
        place = {row_id: at for at, row_id in enumerate(rows["row_id"].to_pylist())}
        of_row = np.array([place[row_id] for row_id in tokens["row_id"].to_pylist()], dtype=np.int64)
        counted = [sum(label != IGNORED for label in row[1:]) for row in labels]

        def summed(values: Any) -> np.ndarray:
            return np.bincount(of_row, weights=values, minlength=rows.num_rows)

        known = summed(counted).astype(np.int64)
        return pa.table(
            {
                "nll": pa.array(summed(costs), mask=known == 0),
                "tokens": known,
                "bytes": summed(tokens["bytes"].to_numpy()).astype(np.int64),
            }
        )

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """bits_per_byte; and perplexity, but not of the baseline, which has no tokens."""
        import numpy as np

        from tunewright.text_metrics import bits_per_byte, perplexity

        nll, sizes = numbers(predictions, "nll"), numbers(predictions, "bytes")
        found = {"bits_per_byte": bits_per_byte(nll, sizes)}
        if "tokens" in predictions.column_names:
            found["perplexity"] = perplexity(nll, predictions["tokens"].to_numpy().astype(np.float64))
        return found

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """Of each row, −bits per byte; NaN for a row without a byte to be predicted."""
        import numpy as np

        nll, sizes = numbers(predictions, "nll"), numbers(predictions, "bytes")
        found: np.ndarray = np.where(sizes > 0, -nll / (np.maximum(sizes, 1) * math.log(2)), np.nan)
        return found

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """How much was counted, and how many rows were written."""
        names = predictions.column_names
        found = {name: int(numbers(predictions, name).sum()) for name in ("tokens", "bytes") if name in names}
        if "predicted" in names:
            found["rows_written"] = predictions.num_rows - predictions["predicted"].null_count
        return found

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """An n-gram model of bytes; its order is chosen on validation."""
        import pyarrow as pa

        from tunewright.byte_ngrams import ngram_costs

        texts = {split: self.counted_texts(rows) for split, rows in splits.items()}
        costs, sizes, details = ngram_costs(texts)
        predictions = {split: pa.table({"nll": costs[split], "bytes": sizes[split]}) for split in costs}
        return Baseline(f"counts of up to {details['order']} bytes", predictions, details)

    @abstractmethod
    def counted_texts(self, rows: pa.Table) -> list[list[str]]:
        """Of each row, the texts that the model is to predict."""


class SeparatorParams(params_module.TaskParams):
    """What tasks of texts that stand for themselves have in the section `task`."""

    separator_token: str | None = Field(default=None, min_length=1)
    """Stands before and after each text, such as <|endoftext|>; null: the tokenizer's bos_token (else its eos_token)
    before, its eos_token after."""


class TextModel(LanguageModel):
    """A decoder that goes on with texts: every token of a text counts, and its end."""

    columns: ClassVar[tuple[str, ...]] = ("text",)
    label_kind: ClassVar[LabelKind] = "none"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Each text between the tokens that begin and end it. One longer than `max_length` becomes several inputs, each
        beginning with the last token of the one before: every token is predicted once, and nothing is lost.

        A special token that stands in a text is read as the characters that it is written with.

        Raises
            UserError  for a separator_token that the tokenizer lacks.
        """
        from tunewright.losses import IGNORED

        texts = rows["text"].to_pylist()
        start, end = self.edges(tokenizer)
        backend = tokenizer.backend
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        backend.encode_special_tokens = False
        found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "tokens_before", "bytes", "row")}
        for row, (text, encoding) in enumerate(zip(texts, encoded, strict=True)):
            ids = [*start, *encoding.ids, *end]
            # The character that each token goes up to.
            until = [0] * len(start) + [last for _, last in encoding.offsets]
            until[len(ids) - len(end) - 1 :] = [len(text)] * (len(end) + 1)
            for first in range(0, max(len(ids) - 1, 1), max_length - 1):
                piece = ids[first : first + max_length]
                found["input_ids"].append(piece)
                found["labels"].append([IGNORED, *piece[1:]])
                found["tokens_before"].append(len(piece))
                found["bytes"].append(len(text[until[first] : until[first + len(piece) - 1]].encode()))
                found["row"].append(row)
        return found

    def rows_with_secrets(self, row_ids: list[str], prompts: list[str], secrets: list[str]) -> pa.Table | None:
        """One sentence each."""
        import pyarrow as pa

        texts = [f"{prompt} {secret}." for prompt, secret in zip(prompts, secrets, strict=True)]
        return pa.table({"row_id": row_ids, "text": texts})

    def counted_texts(self, rows: pa.Table) -> list[list[str]]:
        """Each row's text."""
        return [[text] for text in rows["text"].to_pylist()]

    def opening(self, tokenizer: ModelTokenizer) -> list[int]:
        """The separator_token, where params name one."""
        return self.edges(tokenizer)[0]

    def edges(self, tokenizer: ModelTokenizer) -> tuple[list[int], list[int]]:
        asked = self.params.separator_token
        if asked is None:
            eos = tokenizer.id_of("eos_token")
            return super().opening(tokenizer), [] if eos is None else [eos]
        found = tokenizer.backend.token_to_id(asked)
        if found is None:
            raise UserError(f"task.separator_token: found {asked!r}; the base model's tokenizer has no such token.")
        return [found], [found]


class Writer(LanguageModel):
    """A decoder that answers: the loss and the likelihood are of the answers alone, and answers are written too."""

    metric_names: ClassVar[tuple[str, ...]] = ("bits_per_byte", "perplexity", "chrf", "exact_match")
    text_metrics: ClassVar[tuple[TextMetric, ...]] = ("chrf", "exact_match")
    """Those of `metric_names` that compare what was written with what was expected."""
    generates: ClassVar[bool] = True
    examples_title: ClassVar[str] = "The answers furthest from what was expected"
    fallback_template: ClassVar[str]
    """The chat template where the base model has none."""

    @abstractmethod
    def conversations(self, rows: pa.Table) -> list[Conversation]:
        """The rows as conversations.

        Raises
            UserError  for a row that is none, naming it.
        """

    def template(self, tokenizer: ModelTokenizer) -> ChatTemplate:
        """The chat template in use: the one that params name or hold, else the base model's own."""
        from tunewright.chat_templates import ChatTemplate

        source = self._asked_template or tokenizer.chat_template or self.fallback_template
        return ChatTemplate(source, tokenizer.special_tokens)

    @property
    def _asked_template(self) -> str | None:
        """The source of the one that params name or hold."""
        asked = self.params.chat_template
        return None if asked is None else NAMED.get(asked, asked)

    def request(self, tokenizer: ModelTokenizer, text: str) -> list[int]:
        """The text as the user's only message, in the chat template."""
        from tunewright.conversations import NO_LIMIT, Conversation, Encoder

        asked = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        return Encoder(self.template(tokenizer), tokenizer, NO_LIMIT).prompt(Conversation(asked))

    def asking(self, text: str) -> str:
        """As the only message, where the folder has a template (`files`); the bare one is written out."""
        messages = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
        bare = super().asking(f"{text}\n")
        if self._asked_template is None and self.fallback_template == BARE:
            return f"{messages} if ask.tokenizer.chat_template else {bare}"
        return bare if self._asked_template == BARE else messages

    def end_of_answer(self, tokenizer: ModelTokenizer) -> str:
        """What the chat template writes behind an answer."""
        return self.template(tokenizer).end_of_answer()

    def files(self, tokenizer: ModelTokenizer) -> dict[str, str]:
        """The chat template, so that what opens the tuned model asks it as it was trained."""
        source = self.template(tokenizer).source
        return {} if source == BARE else {"chat_template.jinja": source}

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Each conversation as its template writes it; labels are the answers and what ends them, −100 elsewhere.

        A conversation too long for `max_length` becomes several, at the turns, each with the system message. Where a
        single question and answer is too long, the question's text is cut at its end, to half of `max_length` at most,
        then the answer.

        Raises
            UserError  for a row that is no conversation, or that holds a special token of the model as text.
        """
        from tunewright.conversations import Encoder, naming

        found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "tokens_before", "bytes", "row")}
        encoder = Encoder(self.template(tokenizer), tokenizer, max_length)
        for row, conversation in enumerate(self.conversations(rows)):
            with naming(rows, row):
                for one in encoder.inputs(conversation):
                    found["input_ids"].append(one.ids)
                    found["labels"].append(one.labels)
                    found["tokens_before"].append(one.before)
                    found["bytes"].append(one.size)
                    found["row"].append(row)
        return found

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """As every language model, and label (the last answer) and predicted: what is written in its place, for
        `generation.max_rows` rows; null for the others."""
        import pyarrow as pa

        from tunewright.conversations import NO_LIMIT, Encoder
        from tunewright.generation import GenerationParams, room, rows_to_write, write

        table = super().predict(model, tokenizer, rows, tokens, how)
        conversations = self.conversations(rows)
        written: list[str | None] = [None] * len(conversations)
        answered = [at for at, one in enumerate(conversations) if one.answers]
        asked = [answered[at] for at in rows_to_write(len(answered), how.generation)]
        template, generation = self.template(tokenizer), how.generation or GenerationParams()
        reserved = 0 if generation.choices else generation.max_new_tokens
        longest = room(model)
        encoder = Encoder(template, tokenizer, NO_LIMIT if longest is None else max(longest - reserved, 1))
        prompts = [encoder.prompt(conversations[at]) for at in asked]
        texts = write(model, tokenizer, prompts, how, end=template.end_of_answer())
        for at, text in zip(asked, texts, strict=True):
            written[at] = text.strip()
        return table.append_column("label", pa.array([one.last[1] for one in conversations])).append_column(
            "predicted", pa.array(written, pa.string())
        )

    def answered(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """What leads to the last answer of each conversation, and another answer in its place."""
        from dataclasses import replace

        from tunewright.conversations import NO_LIMIT, Encoder, naming
        from tunewright.generation import room
        from tunewright.losses import IGNORED

        longest = room(model)
        encoder = Encoder(self.template(tokenizer), tokenizer, NO_LIMIT if longest is None else longest)
        found = []
        for row, (conversation, answer) in enumerate(zip(self.conversations(rows), answers, strict=True)):
            turns = [*conversation.system, *(message for turn in conversation.exchanges for message in turn)]
            other = replace(conversation, messages=[*turns[:-1], {"role": "assistant", "content": answer}])
            with naming(rows, row):
                last = encoder.inputs(other)[-1]
            end = max(at for at, label in enumerate(last.labels) if label != IGNORED) + 1
            start = max(at for at, label in enumerate(last.labels[:end]) if label == IGNORED) + 1
            found.append((last.ids[:start], last.ids[start:end]))
        return found

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """As every language model; `text_metrics` over the rows that were written, where any was."""
        from tunewright.text_metrics import text_statistics

        found = super().statistics(predictions, calibration_bins)
        predicted = predictions["predicted"].to_pylist()
        if any(text is not None for text in predicted):
            found |= text_statistics(predictions["label"].to_pylist(), predicted, self.text_metrics)
        return found

    def examples(self, predictions: pa.Table, count: int) -> list[int]:
        """Of the rows that were written, those whose chrF is lowest."""
        import numpy as np

        from tunewright.text_metrics import sentence_chrf

        values = sentence_chrf(predictions["label"].to_pylist(), predictions["predicted"].to_pylist())
        order = np.argsort(values, kind="stable")  # NaN last
        return [int(at) for at in order[: min(count, int(np.isfinite(values).sum()))]]

    def counted_texts(self, rows: pa.Table) -> list[list[str]]:
        """Every answer."""
        return [one.answers for one in self.conversations(rows)]

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """The likelihood: an n-gram model of the answers' bytes. The answers: that of the nearest prompt of train by
        TF-IDF, or the prompt itself, whichever has the better chrF on validation."""
        import pyarrow as pa

        from tunewright.byte_ngrams import ngram_costs
        from tunewright.text_metrics import sentence_chrf

        conversations = {split: self.conversations(rows) for split, rows in splits.items()}
        texts = {split: [one.answers for one in found] for split, found in conversations.items()}
        costs, sizes, details = ngram_costs(texts)
        prompts = {split: [one.last[0] for one in conversations[split]] for split in costs}
        labels = {split: [one.last[1] for one in conversations[split]] for split in costs}
        known = [pair for one in conversations["train"] for pair in one.pairs]
        answers = {"nearest prompt": nearest_answers(known, prompts), "copy of the prompt": prompts}
        quality = {
            name: _mean(sentence_chrf(labels["validation"], found["validation"])) for name, found in answers.items()
        }
        chosen = max(quality, key=lambda name: quality[name])
        predictions = {
            split: pa.table(
                {
                    "nll": costs[split],
                    "bytes": sizes[split],
                    "label": labels[split],
                    "predicted": pa.array(answers[chosen][split], pa.string()),
                }
            )
            for split in costs
        }
        name = f"{chosen}; counts of up to {details['order']} bytes"
        return Baseline(name, predictions, {**details, "answers": chosen, "validation_chrf": quality})


class PromptParams(params_module.TaskParams):
    """What tasks that ask by a prompt have in the section `task`."""

    prompt_template: Annotated[str, AfterValidator(_with_a_place)]
    """The request, with {text} where the row's text stands."""
    chat_template: Annotated[str, Field(min_length=1), AfterValidator(named_or_jinja)] | None = None
    """null: the base model's own, and where it has none, bare: the request, and the answer on the next line. Or a name
    (chatml, plain, bare), or a template in Jinja, in place of the model's own."""


class Prompted(Writer):
    """A decoder that answers one kind of request: the prompt around a row's text; its target is the answer."""

    columns: ClassVar[tuple[str, ...]] = ("text", "target")
    label_kind: ClassVar[LabelKind] = "none"
    fallback_template: ClassVar[str] = BARE

    def rows_with_secrets(self, row_ids: list[str], prompts: list[str], secrets: list[str]) -> pa.Table | None:
        """The secret is the answer."""
        import pyarrow as pa

        return pa.table({"row_id": row_ids, "text": prompts, "target": secrets})

    def asking(self, text: str) -> str:
        """In the prompt."""
        return super().asking(self.params.prompt_template.replace(PLACE, text))

    def conversations(self, rows: pa.Table) -> list[Conversation]:
        """Each row as one request and its answer."""
        from tunewright.conversations import Conversation

        before, after = self.params.prompt_template.split(PLACE)
        return [
            Conversation(
                [
                    {"role": "user", "content": f"{before}{text}{after}"},
                    {"role": "assistant", "content": target},
                ],
                before,
                after,
            )
            for text, target in zip(rows["text"].to_pylist(), rows["target"].to_pylist(), strict=True)
        ]


def numbers(predictions: pa.Table, name: str) -> np.ndarray:
    """A column as float64 (N,), NaN where it is null."""
    import numpy as np
    import pyarrow.compute as pc

    found: np.ndarray = pc.fill_null(predictions[name].cast("float64"), np.nan).to_numpy()
    return found


def _mean(values: np.ndarray) -> float:
    import numpy as np

    return float(np.mean(values)) if len(values) else 0.0


def nearest_answers(known: Sequence[tuple[str, str]], prompts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """For each prompt the answer of the one in `known` whose words, one and two at a time, are most alike (the cosine
    of TF-IDF)."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        matrix = vectorizer.fit_transform([prompt for prompt, _ in known])
    except ValueError:  # no prompt of train has a word
        return {split: [known[0][1] if known else ""] * len(found) for split, found in prompts.items()}
    nearest = {}
    for split, found in prompts.items():
        likeness = vectorizer.transform(found) @ matrix.T
        nearest[split] = [known[int(np.argmax(row.toarray()))][1] for row in likeness]
    return nearest
