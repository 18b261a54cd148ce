"""How a model writes texts when it is evaluated, and with which settings: the section `evaluate.generation`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from tunewright.batches import sorted_batches
from tunewright.errors import UserError
from tunewright.likelihood import negative_log_likelihoods, padded, token_batches
from tunewright.losses import IGNORED
from tunewright.params import Section

if TYPE_CHECKING:
    from tunewright.task import Predicting
    from tunewright.tokenizer import ModelTokenizer

Words = list[Annotated[str, Field(min_length=1)]]
SAMPLING = ("temperature", "top_p", "top_k")
OF_THE_MODEL = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
"""What a model's own generation config says of how its texts begin and end."""
STOP_SEQUENCES = "stop_sequences"
"""Where generation_config.json holds the stop strings. Under Transformers' own name, `stop_strings`, `generate` refuses
to write anything for whoever does not hand it the tokenizer, as `pipeline` does not."""


class GenerationParams(Section):
    """Names and defaults as Transformers' GenerationConfig has them; every key may be left out."""

    max_new_tokens: int = Field(default=64, ge=1, le=100_000)
    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=50, ge=0, le=1_000_000, description="0: of all tokens")
    num_beams: int = Field(default=1, ge=1, le=64)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    stop_strings: Words = Field(default_factory=list)
    bad_words: Words = Field(default_factory=list)
    choices: Words = Field(default_factory=list)
    max_rows: int | None = Field(default=None, ge=1, description="rows of a split that are written; null: all")

    @model_validator(mode="after")
    def _the_keys_do_not_contradict(self) -> Self:
        given = self.model_fields_set
        faults = [f"{key} only with do_sample: true" for key in SAMPLING if key in given and not self.do_sample]
        if self.do_sample and self.num_beams > 1:
            faults.append("num_beams 1 with do_sample: a beam looks for the likeliest text")
        if self.stop_strings and self.num_beams > 1:
            faults.append("no stop_strings with num_beams above 1")
        if self.choices:
            other = ("do_sample", "num_beams", "repetition_penalty", "stop_strings", "bad_words", "max_new_tokens")
            faults += [f"no {key} with choices: the likeliest of them is the answer" for key in other if key in given]
            if len(set(self.choices)) != len(self.choices):
                faults.append("distinct choices")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def rows_to_write(count: int, generation: GenerationParams | None) -> list[int]:
    """The rows of a split that text is written for: at most `max_rows`, at even steps over the split."""
    most = count if generation is None or generation.max_rows is None else min(count, generation.max_rows)
    return [at * count // most for at in range(most)]


def write(
    model: Any, tokenizer: ModelTokenizer, prompts: Sequence[list[int]], how: Predicting, *, end: str = ""
) -> list[str]:
    """What the model writes after each prompt (a decoder), or for each source (an encoder-decoder).

    A sample depends on the seed, its prompt and how many equal prompts stand before it, not on the batch that it is
    computed in: noise is drawn for each row on its own.

    prompts: token ids, as the model is to read them.
    end: what the model was trained to end an answer with, beside the end of a text; cut off.

    Raises
        UserError  prompts for which the model has no room.
    """
    if not prompts:
        return []
    params = how.generation or GenerationParams()
    tokenizer.backend.no_padding()
    tokenizer.backend.no_truncation()
    training = model.training
    model.eval()
    try:
        if params.choices:
            return _chosen(model, tokenizer, prompts, params.choices, how, end)
        return _written(model, tokenizer, prompts, params, how, end)
    finally:
        model.train(training)


def generation_config(
    params: GenerationParams, tokenizer: ModelTokenizer, model_ends: Sequence[int] = (), end: str = ""
) -> dict[str, Any]:
    """The settings in the words of Transformers' GenerationConfig.

    model_ends: the ids that the model's own config ends a text with.   end: see `write`.
    """
    ends = _ends(tokenizer, model_ends, end)
    found: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "do_sample": params.do_sample,
        "num_beams": params.num_beams,
        "repetition_penalty": params.repetition_penalty,
        "eos_token_id": ends or None,
        "pad_token_id": tokenizer.pad_token_id,
        "bad_words_ids": _bad_words(tokenizer, params.bad_words) or None,
        "stop_strings": _stops(tokenizer, params, end) or None,
    }
    if params.do_sample:
        found |= {key: getattr(params, key) for key in SAMPLING}
    return {key: value for key, value in found.items() if value is not None}


def exported_config(params: GenerationParams, tokenizer: ModelTokenizer, model: Any, end: str = "") -> dict[str, Any]:
    """All of `generation_config.json`: what `generate` then does without being told, and under STOP_SEQUENCES the
    strings that it must be handed to stop at them.   end: see `write`."""
    found = generation_config(params, tokenizer, model_ends(model), end)
    stops = found.pop("stop_strings", None)
    return {**_own(model), **found, **({STOP_SEQUENCES: stops} if stops else {})}


def _own(model: Any) -> dict[str, Any]:
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in OF_THE_MODEL}
    return {name: value for name, value in found.items() if value is not None}


def model_ends(model: Any) -> list[int]:
    """The ids that a model's own configs end a text with."""
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return sorted(found)


def room(model: Any) -> int | None:
    """How many tokens a decoder takes, prompt and answer together; None where it sets no limit."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None else int(positions) - _virtual_tokens(model)


def _virtual_tokens(model: Any) -> int:
    """Of a prompt or prefix that PEFT puts before every input."""
    configs = getattr(model, "peft_config", {})
    return sum(getattr(config, "num_virtual_tokens", None) or 0 for config in configs.values())


def _ends(tokenizer: ModelTokenizer, ends: Sequence[int], end: str) -> list[int]:
    own = tokenizer.id_of("eos_token")
    marked = tokenizer.backend.token_to_id(end) if end else None
    return sorted({*ends, *(found for found in (own, marked) if found is not None)})


def _stops(tokenizer: ModelTokenizer, params: GenerationParams, end: str) -> list[str]:
    """The strings that end a text; an end of one token is none of them, but an id."""
    spelled = end if end and tokenizer.backend.token_to_id(end) is None else ""
    return [*params.stop_strings, *([spelled] if spelled.strip() else [])]


def _bad_words(tokenizer: ModelTokenizer, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word at the start of a text and after a space, each once."""
    found: list[list[int]] = []
    for word in words:
        for text in (word, f" {word}"):
            ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
            if ids and ids not in found:
                found.append(ids)
    return found


def _written(
    model: Any,
    tokenizer: ModelTokenizer,
    sources: Sequence[list[int]],
    params: GenerationParams,
    how: Predicting,
    end: str,
) -> list[str]:
    import torch
    from transformers import GenerationConfig

    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    if not two_sided:
        _check_room(model, sources, params)
    settings = generation_config(params, tokenizer, model_ends(model), end)
    stops = settings.pop("stop_strings", [])
    # Sampling is a greedy search once noise is on the scores, see `_noise`.
    for key in SAMPLING:
        settings.pop(key, None)
    config = GenerationConfig(**{**_own(model), **settings, "do_sample": False})
    ends = set(settings.get("eos_token_id", []))
    seeds = _seeds(sources, how.seed)
    # PEFT's virtual tokens stand before the padding: such a row is computed alone.
    size, budget = (1, None) if _virtual_tokens(model) else (how.batch_size, how.max_tokens)
    after = 0 if two_sided else params.max_new_tokens
    texts = [""] * len(sources)
    for batch in sorted_batches([len(ids) + after for ids in sources], size, budget):
        rows = [sources[row] for row in batch]
        ids = padded(rows, tokenizer.pad_token_id, left=not two_sided).to(model.device)
        mask = padded([[1] * len(row) for row in rows], 0, left=not two_sided).to(model.device)
        before = 1 if two_sided else ids.shape[1]
        stop = _stopping(tokenizer, stops, before, len(batch))
        with torch.inference_mode(), _without_defaults(model, config):
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=_noise(params, [seeds[row] for row in batch]) if params.do_sample else None,
                stopping_criteria=[stop] if stops else None,
            )
        for at, row in enumerate(batch):
            new = found[at, before:].tolist()
            if stop.ended[at] is not None:
                new = new[: stop.ended[at]]
            first = next((place for place, token in enumerate(new) if token in ends), len(new))
            texts[row] = _before(tokenizer.backend.decode(new[:first], skip_special_tokens=True), stops)
    return texts


@contextmanager
def _without_defaults(model: Any, config: Any) -> Iterator[None]:
    """From the model's own file Transformers fills in whatever these settings leave open: stop strings, for which it
    would want its own tokenizer, and rules such as no_repeat_ngram_size, which no export carries."""
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    return text[: min([at for at in (text.find(stop) for stop in stops) if at >= 0], default=len(text))]


def _check_room(model: Any, sources: Sequence[list[int]], params: GenerationParams) -> None:
    longest, limit = max(len(ids) for ids in sources), room(model)
    if limit is not None and longest + params.max_new_tokens > limit:
        raise UserError(
            f"evaluate.generation.max_new_tokens: found {params.max_new_tokens}, and prompts of up to {longest} "
            f"tokens; the model takes at most {limit} together. Lower it."
        )


def _seeds(sources: Sequence[list[int]], seed: int) -> list[int]:
    """One seed a row, of its content and of how many rows before it are equal to it."""
    before: Counter[tuple[int, ...]] = Counter()
    found = []
    for ids in sources:
        key = tuple(ids)
        digest = hashlib.sha256(f"{seed} {before[key]} {ids}".encode()).digest()
        found.append(int.from_bytes(digest[:8], "big") >> 1)
        before[key] += 1
    return found


def _noise(params: GenerationParams, seeds: list[int]) -> Any:
    """Processors after which the largest score is a sample: the cuts of top_k and top_p, then Gumbel noise, which each
    row draws from a generator of its own.

    argmax(ln p + g), where g = −ln(−ln u), is distributed as p. Source: E. J. Gumbel (1954); C. J. Maddison et al.,
    A* sampling, NeurIPS 2014, section 2.
    """
    import torch
    from transformers import (
        LogitsProcessor,
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    class Noise(LogitsProcessor):
        def __init__(self) -> None:
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            size = scores.shape[-1]
            drawn = [-torch.empty(size).exponential_(generator=one).log() for one in self.generators]
            return scores + torch.stack(drawn).to(scores.device)

    found = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        found.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        found.append(TopPLogitsWarper(params.top_p))
    found.append(Noise())
    return found


def _stopping(tokenizer: ModelTokenizer, stops: list[str], before: int, rows: int) -> Any:
    """A criterion that ends a row once one of the strings stands in it; `ended` holds after how many new tokens."""
    import torch
    from transformers import StoppingCriteria

    # A token is at least one byte, so a string that has just been completed begins no further back.
    window = max((len(stop.encode()) for stop in stops), default=0)

    class Stop(StoppingCriteria):
        def __init__(self) -> None:
            self.ended: list[int | None] = [None] * rows

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            for row, ids in enumerate(input_ids[:, before:].tolist()):
                if self.ended[row] is None:
                    tail = tokenizer.backend.decode(ids[-window - 8 :], skip_special_tokens=False)
                    if any(stop in tail for stop in stops):
                        self.ended[row] = len(ids)
            return torch.tensor([end is not None for end in self.ended], device=input_ids.device)

    return Stop()


def _chosen(
    model: Any,
    tokenizer: ModelTokenizer,
    sources: Sequence[list[int]],
    choices: Sequence[str],
    how: Predicting,
    end: str,
) -> list[str]:
    """The choice that the model holds for the likeliest whole answer, its end counted; of equals the first."""
    two_sided = bool(getattr(model.config, "is_encoder_decoder", False))
    encoded = [tokenizer.backend.encode(text, add_special_tokens=two_sided).ids for text in choices]
    if two_sided:
        encoded = [_label(ids, model) for ids in encoded]
    else:
        closing = tokenizer.backend.encode(end, add_special_tokens=False).ids if end else model_ends(model)[:1]
        encoded = [[*ids, *closing] for ids in encoded]
        longest = max(len(ids) for ids in sources) + max(len(ids) for ids in encoded)
        limit = room(model)
        if limit is not None and longest > limit:
            raise UserError(
                f"evaluate.generation.choices: a prompt and a choice have up to {longest} tokens together; the model "
                f"takes at most {limit}. Lower tokenize.max_length."
            )
    pairs = [(source, answer) for source in sources for answer in encoded]
    if two_sided:
        costs = _answer_costs(model, pairs, how, tokenizer.pad_token_id)
    else:
        ids = [source + answer for source, answer in pairs]
        labels = [[IGNORED] * len(source) + answer for source, answer in pairs]
        costs = negative_log_likelihoods(
            model, ids, labels, how.batch_size, tokenizer.pad_token_id, how.max_tokens
        ).tolist()
    count = len(choices)
    of_source = [costs[start : start + count] for start in range(0, len(costs), count)]
    return [choices[min(range(count), key=row.__getitem__)] for row in of_source]


def _label(ids: list[int], model: Any) -> list[int]:
    """An encoder-decoder's label: what it starts from is none, and its end is one."""
    ends = model_ends(model)
    if ids[:1] == [model.config.decoder_start_token_id]:
        ids = ids[1:]
    return ids if ids[-1:] and ids[-1] in ends else [*ids, *ends[:1]]


def _answer_costs(
    model: Any, pairs: list[tuple[list[int], list[int]]], how: Predicting, pad_token_id: int
) -> list[float]:
    """−ln p of each answer by an encoder-decoder, in nats."""
    import torch

    costs = [0.0] * len(pairs)
    longest = [max(len(source), len(answer)) for source, answer in pairs]
    with torch.inference_mode():
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        for batch in token_batches(longest, how.batch_size, vocabulary, how.max_tokens):
            sources, answers = [pairs[row][0] for row in batch], [pairs[row][1] for row in batch]
            labels = padded(answers, IGNORED).to(model.device)
            logits = model(
                input_ids=padded(sources, pad_token_id).to(model.device),
                attention_mask=padded([[1] * len(row) for row in sources], 0).to(model.device),
                labels=labels,
            ).logits.float()
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
            )
            for row, cost in zip(batch, losses.double().sum(dim=1).tolist(), strict=True):
                costs[row] = cost
    return costs
