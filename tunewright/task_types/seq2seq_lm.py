"""Sequence to sequence: of a text another one is made, by an encoder-decoder. Translation, summarization, rewriting.

The base model is an encoder-decoder (T5, BART, …), or an encoder alone: then a pair is made of it, as Rothe et al. 2020
make their BERT2BERT. Encoder and decoder both start from its weights and share none of them; the attention between
them and the layer before the decoder's output are new.

Metrics: chrF, BLEU and ROUGE of the texts written, the share of texts that are as expected, and what the expected
texts cost the model: bits a byte, and perplexity.

Source: S. Rothe, S. Narayan, A. Severyn, Leveraging pre-trained checkpoints for sequence generation tasks, TACL 8,
2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.classification import padded, tokenized
from tunewright.errors import UserError
from tunewright.task import Architecture, Baseline, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.text_metrics import TextMetric
    from tunewright.tokenizer import ModelTokenizer

OF_TEXTS: tuple[TextMetric, ...] = ("chrf", "bleu", "rouge1", "rouge2", "rougeL", "exact_match")
PLACE = "{text}"
COPYING = "copying the text"
ANSWER_TOKENS = 1024
"""An answer that the model wrote is read up to here, whatever the longest target that it learned from."""

BleuTokenizer = Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"]
"""sacrebleu's names. 13a: that of the WMT's mteval script, for languages that put spaces between words; zh, ja-mecab,
ko-mecab: for Chinese, Japanese and Korean; char: every character; none: the text as it stands."""


def _has_a_place(template: str) -> str:
    if template.count(PLACE) != 1:
        raise ValueError(f"a text with {PLACE} in it once")
    return template


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for an encoder-decoder."""

    type: Literal["seq2seq_lm"]
    prompt_template: Annotated[str, AfterValidator(_has_a_place)] | None = None
    """What the encoder reads: T5 was trained with "translate English to French: {text}". null: the text alone."""
    max_target_length: int | None = Field(default=None, ge=2, le=1_000_000, description="tokens; null: as max_length")
    bleu_tokenize: BleuTokenizer = "13a"


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "target")
    metric_names: ClassVar[tuple[str, ...]] = (*OF_TEXTS, "bits_per_byte", "perplexity")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"bits_per_byte", "perplexity"})
    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder_decoder", "encoder")
    generates: ClassVar[bool] = True
    pretrained: ClassVar[bool] = True
    in_percent: ClassVar[frozenset[str]] = frozenset({"exact_match"})
    score_name: ClassVar[str] = "chrF"
    examples_title: ClassVar[str] = "The texts furthest from what was expected"
    pipeline_tag: ClassVar[str] = "text-generation"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text` in its template, and `target`: the labels, with the token that ends a text.

        `bytes` are those of the target as far as the labels go, in UTF-8.

        Raises
            UserError  when the tokenizer has no token that ends a text.
        """
        texts = [self._in_template(text) for text in rows.column("text").to_pylist()]
        encoded, lengths = tokenized(texts, tokenizer.backend, max_length)
        targets = rows.column("target").to_pylist()
        longest = self.params.max_target_length or max_length
        labels, target_lengths = _labels(targets, tokenizer, longest)
        sizes = [
            len((target if length <= longest else tokenizer.backend.decode(ids)).encode())
            for target, ids, length in zip(targets, labels, target_lengths, strict=True)
        ]
        return {
            "input_ids": encoded,
            "labels": labels,
            "bytes": sizes,
            "tokens_before": lengths,
            "target_tokens_before": target_lengths,
        }

    def asking(self, text: str) -> str:
        """In its template."""
        return super().asking(self._in_template(text))

    def _in_template(self, text: str) -> str:
        return (self.params.prompt_template or PLACE).replace(PLACE, text)

    def rows_with_secrets(self, row_ids: list[str], prompts: list[str], secrets: list[str]) -> pa.Table | None:
        """The secret is what is to be written."""
        import pyarrow as pa

        return pa.table({"row_id": row_ids, "text": prompts, "target": secrets})

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest text and the longest target of the batch; labels (B, T') are −100 where they are padded.

        What the decoder reads is made of the labels by the model: they are shifted by one, behind its start token.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from tunewright.losses import IGNORED

        labels = [torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows]
        return {
            **padded(rows, pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """The encoder-decoder of the folder, or a pair made of its encoder.

        Raises
            UserError  when the folder holds neither.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        config = AutoConfig.from_pretrained(folder)
        if config.model_type == "encoder-decoder":
            # A pair keeps all settings in its halves.
            own = {name for name in settings if hasattr(config.encoder, name)}
            for half in (config.encoder, config.decoder):
                for name in own:
                    setattr(half, name, settings[name])
            settings = {"config": config, **{name: value for name, value in settings.items() if name not in own}}
        elif not config.is_encoder_decoder:
            return self._pair(folder, config, settings)
        return AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, **settings)

    def _pair(self, folder: Path, config: Any, settings: dict[str, Any]) -> Any:
        """An encoder twice, as encoder and as decoder."""
        from transformers import EncoderDecoderModel
        from transformers.models.auto import modeling_auto as auto
        from transformers.utils import logging

        from tunewright.tokenizer import open_tokenizer

        kind = config.model_type
        if kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise UserError(
                "task.type: seq2seq_lm takes an encoder-decoder such as T5 or BART, or an encoder that a decoder can "
                f"be made of, such as BERT; the base model is of type {kind}. A decoder writes by task.type: "
                "instruction."
            )
        halves = {
            f"{half}_{name}": value
            for half in ("encoder", "decoder")
            for name, value in {**settings, "use_safetensors": True}.items()
        }
        told = logging.get_verbosity()
        logging.set_verbosity_error()  # what the decoder lacks is meant to be new, and is no sign of a corrupt file
        try:
            model = EncoderDecoderModel.from_encoder_decoder_pretrained(str(folder), str(folder), **halves)
        except ValueError as error:
            raise UserError(f"task.type: no decoder can be made of a base model of type {kind}: {error}") from error
        finally:
            logging.set_verbosity(told)
        tokenizer = open_tokenizer(folder)
        end, start = tokenizer.id_of("eos_token"), tokenizer.id_of("bos_token")
        for found in (model.config, model.generation_config):
            found.decoder_start_token_id = tokenizer.id_of("cls_token") if start is None else start
            found.eos_token_id = tokenizer.id_of("sep_token") if end is None else end
            found.pad_token_id = tokenizer.pad_token_id
        model.config.vocab_size = config.vocab_size  # PEFT looks for the embeddings by it
        pooler = getattr(model.encoder, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # nothing reads it here
        return model

    def from_config(self, config: Any) -> Any:
        """A new encoder-decoder; of an encoder's config a pair, as `load_model` makes one."""
        from transformers import AutoModelForSeq2SeqLM

        if config.is_encoder_decoder:
            return AutoModelForSeq2SeqLM.from_config(config)
        return _new_pair(config)

    def head_modules(self, model: Any) -> list[Any]:
        """What is new in a pair: the attention from the decoder to the encoder, and the layer before its output. An
        encoder-decoder that was trained as one has nothing new."""
        if model.config.model_type != "encoder-decoder":
            return []
        decoder, output = model.decoder, model.get_output_embeddings()
        crossing = [module for name, module in decoder.named_modules() if name.endswith("crossattention")]
        head = [
            module
            for child in decoder.children()
            if child is not decoder.base_model
            for module in child.modules()
            # The output's own weights are those of the embeddings.
            if module is not output and not list(module.children()) and list(module.parameters(recurse=False))
        ]
        return [*crossing, *head]

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """label (the target), predicted (the text written; null where none was asked for), and nll, tokens and bytes
        of the target."""
        import pyarrow as pa

        from tunewright.generation import rows_to_write, write

        nll, counted = self._likelihood(model, tokens, how, tokenizer.pad_token_id)
        asked = rows_to_write(rows.num_rows, how.generation)
        sources = tokens.column("input_ids")
        prompts = [sources[row].as_py() for row in asked]
        texts = dict(zip(asked, write(model, tokenizer, prompts, how), strict=True))
        return pa.table(
            {
                "label": rows.column("target"),
                "predicted": pa.array([texts.get(row) for row in range(rows.num_rows)], pa.string()),
                "nll": pa.array(nll, pa.float64()),
                "tokens": pa.array(counted, pa.int64()),
                "bytes": tokens.column("bytes").cast(pa.int64()),
            }
        )

    def answered(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """The text in its template, and the answer as a target."""
        labels, _ = _labels(list(answers), tokenizer, ANSWER_TOKENS)
        return list(zip(tokens["input_ids"].to_pylist(), labels, strict=True))

    def _likelihood(
        self, model: Any, tokens: pa.Table, how: Predicting, pad_token_id: int
    ) -> tuple[list[float], list[int]]:
        """Of each row −log p(target | text) in nats, each token after those before it as they are expected; and the
        number of tokens."""
        import torch

        from tunewright.compute import decoder_inputs
        from tunewright.likelihood import token_batches
        from tunewright.losses import IGNORED

        sources, labels = (tokens.column(name).to_pylist() for name in ("input_ids", "labels"))
        nll = [0.0] * len(sources)
        lengths = [max(len(source), len(label)) for source, label in zip(sources, labels, strict=True)]
        vocabulary = model.get_output_embeddings().weight.shape[0]
        training = model.training
        model.eval()
        with torch.inference_mode():
            for batch in token_batches(lengths, how.batch_size, vocabulary, how.max_tokens):
                found = [{"input_ids": sources[row], "labels": labels[row]} for row in batch]
                inputs = {name: value.to(model.device) for name, value in self.collate(found, pad_token_id).items()}
                wanted = inputs.pop("labels")
                logits = model(**inputs, **decoder_inputs(model, wanted)).logits
                for row, of_row, ids in zip(batch, logits, wanted, strict=True):
                    loss = torch.nn.functional.cross_entropy(
                        of_row.float(), ids, ignore_index=IGNORED, reduction="none"
                    )
                    nll[row] = float(loss.double().sum())
        model.train(training)
        return nll, [len(label) for label in labels]

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """chrF and BLEU (0 to 100), ROUGE-1, -2 and -L (F1) and the share of exact matches over the rows that were
        written; bits a byte and perplexity over all rows, where a model gave the likelihoods."""
        import numpy as np

        from tunewright.text_metrics import bits_per_byte, perplexity, text_statistics

        label, predicted = (predictions.column(name).to_pylist() for name in ("label", "predicted"))
        found = text_statistics(label, predicted, OF_TEXTS, self.params.bleu_tokenize)
        if "nll" in predictions.column_names:
            nll, counted, sizes = (
                np.array(predictions.column(name).to_pylist(), dtype=np.float64) for name in ("nll", "tokens", "bytes")
            )
            found |= {"bits_per_byte": bits_per_byte(nll, sizes), "perplexity": perplexity(nll, counted)}
        return found

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """Each row's own chrF, from 0 to 100; NaN where nothing was written."""
        from tunewright.text_metrics import sentence_chrf

        return sentence_chrf(predictions.column("label").to_pylist(), predictions.column("predicted").to_pylist())

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """How many rows were written, how many of them without a word, and how long they are beside the targets."""
        pairs = [
            (wanted, text)
            for wanted, text in zip(
                predictions.column("label").to_pylist(), predictions.column("predicted").to_pylist(), strict=True
            )
            if text is not None
        ]
        characters = sum(len(wanted) for wanted, _ in pairs)
        return {
            "written": len(pairs),
            "empty": sum(not text.strip() for _, text in pairs),
            "length_ratio": sum(len(text) for _, text in pairs) / characters if characters else None,
        }

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """Copy the text; its first sentence; or the target of the most similar text of train, by TF-IDF. The best on
        validation is taken. Copying is measured on test whatever was taken."""
        import numpy as np
        import pyarrow as pa

        texts = {split: rows.column("text").to_pylist() for split, rows in splits.items()}
        targets = {split: rows.column("target").to_pylist() for split, rows in splits.items()}
        judged = ("validation", "test")
        answers: dict[tuple[str, int | None], dict[str, list[str]]] = {
            ("the text itself", None): {split: texts[split] for split in judged},
            ("its first sentence", None): {split: [_lead(text) for text in texts[split]] for split in judged},
        }
        for longest in params.ngram_range:
            answers["the target of the most similar text of train", longest] = _nearest(texts, targets, longest, params)
        candidates: list[dict[str, Any]] = []
        for (name, longest), found in answers.items():
            table = pa.table({"label": targets["validation"], "predicted": found["validation"]})
            chrf = self.statistics(table, 0)["chrf"](np.ones((1, table.num_rows)))[0]
            candidates.append({"answer": name, "ngram_range": longest, "validation_chrf": float(chrf)})
        # The first of the best: what is simpler stands before.
        best = max(range(len(candidates)), key=lambda at: (candidates[at]["validation_chrf"], -at))
        chosen = list(answers.values())[best]
        return Baseline(
            name=candidates[best]["answer"],
            predictions={
                split: pa.table({"label": splits[split].column("target"), "predicted": pa.array(chosen[split])})
                for split in judged
            },
            details={"candidates": candidates, "chosen": candidates[best]},
            fixed={COPYING: pa.table({"label": splits["test"].column("target"), "predicted": pa.array(texts["test"])})},
        )


def _labels(targets: list[str], tokenizer: ModelTokenizer, longest: int) -> tuple[list[list[int]], list[int]]:
    """Targets as token ids, at most `longest` with the token that ends them, and their lengths before truncation.

    A tokenizer of BERT's kind has no end-of-text token: [CLS] begins a text and [SEP] ends it. There the decoder
    starts from [CLS], which so is no label.
    """
    end, start = tokenizer.id_of("eos_token"), None
    if end is None:
        end, start = tokenizer.id_of("sep_token"), tokenizer.id_of("cls_token")
    if end is None:
        raise UserError(
            "tokenize: the base model's tokenizer names neither an eos_token nor a sep_token, so the model could never "
            "say that its text is at an end. Name one in the model's tokenizer_config.json."
        )
    tokenizer.backend.no_truncation()
    frame = tokenizer.backend.encode("").ids
    begins, ends = start is not None and frame[:1] == [start], frame[-1:] == [end]
    found, lengths = tokenized(targets, tokenizer.backend, longest + begins - (not ends))
    added = [] if ends else [end]
    return [ids[begins:] + added for ids in found], [length - begins + len(added) for length in lengths]


def _new_pair(config: Any) -> Any:
    """An encoder twice, with new weights. Which token begins a text is for its tokenizer to say."""
    import copy

    from transformers import EncoderDecoderConfig, EncoderDecoderModel

    halves = EncoderDecoderConfig.from_encoder_decoder_configs(config, copy.deepcopy(config))
    model = EncoderDecoderModel(halves)
    model.config.pad_token_id = model.config.decoder_start_token_id = config.pad_token_id or 0
    model.config.vocab_size = config.vocab_size
    pooler = getattr(model.encoder, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)
    return model


def _lead(text: str) -> str:
    """The first sentence of the first line that is not empty."""
    import re

    lines = text.strip().splitlines()
    return re.split(r"(?<=[.!?])\s", lines[0], maxsplit=1)[0] if lines else ""


def _nearest(
    texts: dict[str, list[str]], targets: dict[str, list[str]], longest: int, params: Any
) -> dict[str, list[str]]:
    """For each text the target of the training text with the highest cosine of TF-IDF; itself where none is like it."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, longest), min_df=params.min_df, sublinear_tf=params.sublinear_tf)
    try:
        train = vectorizer.fit_transform(texts["train"])
    except ValueError as error:
        raise UserError(
            f"baseline: no n-gram of words stands in {params.min_df} rows of train. Lower baseline.min_df."
        ) from error
    found = {}
    for split in ("validation", "test"):
        answers: list[str] = []
        for first in range(0, len(texts[split]), 256):
            some = texts[split][first : first + 256]
            similarity = (vectorizer.transform(some) @ train.T).toarray()
            best = similarity.argmax(axis=1)
            like = similarity[np.arange(len(some)), best] > 0
            answers += [
                targets["train"][at] if known else text for at, known, text in zip(best, like, some, strict=True)
            ]
        found[split] = answers
    return found
