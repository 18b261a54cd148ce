"""Conversations → inputs of a model: which tokens are an answer, and what goes where one is too long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunewright.errors import UserError
from tunewright.losses import IGNORED

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.chat_templates import ChatTemplate, Messages, Span
    from tunewright.tokenizer import ModelTokenizer

NO_LIMIT = 2**31


@dataclass(frozen=True)
class Conversation:
    """Messages, and what stands around the user's own text in a question and is never cut off."""

    messages: Messages
    before: str = ""
    after: str = ""

    @property
    def system(self) -> Messages:
        """The system message, where the conversation begins with one."""
        return [message for message in self.messages[:1] if message["role"] == "system"]

    @property
    def exchanges(self) -> list[Messages]:
        """What leads to an answer, and the answer, over and over; what follows the last answer is left out."""
        found: list[Messages] = []
        current: list[Mapping[str, str]] = []
        for message in self.messages[len(self.system) :]:
            current.append(message)
            if message["role"] == "assistant":
                found.append(current)
                current = []
        return found

    @property
    def answers(self) -> list[str]:
        """The text of every answer."""
        return [message["content"] for message in self.messages if message["role"] == "assistant"]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each answer after what the user wrote before it."""
        return [
            (self.own(" ".join(one["content"] for one in turns[:-1])), turns[-1]["content"]) for turns in self.exchanges
        ]

    @property
    def last(self) -> tuple[str, str]:
        """The last answer, after what the user wrote before it; empty where there is none."""
        pairs = self.pairs
        return pairs[-1] if pairs else ("", "")

    def own(self, question: str) -> str:
        """The user's own text in a question."""
        return question.removeprefix(self.before).removesuffix(self.after)


@dataclass(frozen=True)
class Input:
    """One input of a model: labels are −100 where nothing is to be learnt."""

    ids: list[int]
    labels: list[int]
    before: int
    """Its length in tokens before it was cut."""
    size: int
    """The bytes of text that the labels stand for."""


class Encoder:
    """Conversations → inputs of at most `max_length` tokens."""

    def __init__(self, template: ChatTemplate, tokenizer: ModelTokenizer, max_length: int) -> None:
        self.template = template
        self.backend = tokenizer.backend
        self.max_length = max_length
        self.backend.no_padding()
        self.backend.no_truncation()
        self.special = {token.content for token in self.backend.get_added_tokens_decoder().values() if token.special}

    def inputs(self, conversation: Conversation) -> list[Input]:
        """See `Writer.encode`."""
        self._check(conversation)
        exchanges, system = conversation.exchanges, conversation.system
        if not exchanges:
            return []
        whole = self._encoded([*system, *_joined(exchanges)])
        if len(whole.ids) <= self.max_length:
            return [whole]
        found = []
        first = 0
        while first < len(exchanges):
            last = first + 1
            best = self._encoded([*system, *exchanges[first]])
            while last < len(exchanges):
                longer = self._encoded([*system, *_joined(exchanges[first : last + 1])])
                if len(longer.ids) > self.max_length:
                    break
                best, last = longer, last + 1
            if len(best.ids) > self.max_length:
                best = self._cut(conversation, exchanges[first], best)
            found.append(best)
            first = last
        return found

    def prompt(self, conversation: Conversation) -> list[int]:
        """The tokens before the last answer. What is too long loses its oldest turns, then the end of its question."""
        self._check(conversation)
        *earlier, last = conversation.exchanges
        question = list(last[:-1])
        while True:
            ids = self._ids([*conversation.system, *_joined(earlier), *question])
            over = len(ids) - self.max_length
            if over <= 0:
                return ids
            if earlier:
                earlier = earlier[1:]
            else:
                question = self._shortened(conversation, question, over)

    def _ids(self, messages: Messages) -> list[int]:
        text = self.template.render(messages, add_generation_prompt=True)
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def _encoded(self, messages: Messages, limit: int | None = None) -> Input:
        """limit: in tokens; what is beyond is cut off."""
        text, spans = self.template.with_answers(messages)
        encoding = self.backend.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids[:limit], encoding.offsets[:limit]
        labels = [IGNORED] * len(ids)
        size = 0
        contents = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        for at, (start, end) in enumerate(spans):
            first, last = _tokens_of(offsets, start, end)
            labels[first:last] = ids[first:last]
            shown = text[start : min(end, offsets[-1][1])]
            whole = end <= offsets[-1][1]
            size += len((contents[at] if whole and len(spans) == len(contents) else shown).encode())
        labels[:1] = [IGNORED]
        return Input(ids, labels, len(encoding.ids), size)

    def _cut(self, conversation: Conversation, exchange: Messages, whole: Input) -> Input:
        """The question's text cut at its end, to half of the room at most; then the answer."""
        *question, answer = exchange
        found = whole
        while len(found.ids) > self.max_length:
            asked = next(at for at, label in enumerate(found.labels) if label != IGNORED)
            over = min(len(found.ids) - self.max_length, asked - self.max_length // 2)
            if over <= 0 or not any(self._text_of(conversation, question)):
                break
            question = self._shortened(conversation, question, over)
            found = self._encoded([*conversation.system, *question, answer])
        found = self._encoded([*conversation.system, *question, answer], self.max_length)
        if all(label == IGNORED for label in found.labels):
            raise UserError(
                f"nothing of its answer fits into tokenize.max_length ({self.max_length} tokens): the chat template "
                "alone fills them. Raise it."
            )
        return Input(found.ids, found.labels, whole.before, found.size)

    def _text_of(self, conversation: Conversation, question: Sequence[Mapping[str, str]]) -> list[str]:
        return [conversation.own(message["content"]) for message in question]

    def _shortened(
        self, conversation: Conversation, question: Sequence[Mapping[str, str]], tokens: int
    ) -> list[Mapping[str, str]]:
        """The question with that many tokens less of the user's own text, cut at the end of its longest message."""
        texts = self._text_of(conversation, question)
        if not any(texts):
            raise UserError(
                "its prompt is longer than the model takes, though nothing of the user's text is left in it"
            )
        at = max(range(len(texts)), key=lambda number: len(texts[number]))
        offsets = self.backend.encode(texts[at], add_special_tokens=False).offsets
        kept = texts[at][: offsets[-tokens][0]] if tokens < len(offsets) else ""
        content = question[at]["content"]
        around = (conversation.before, conversation.after) if texts[at] != content else ("", "")
        shorter = {**question[at], "content": around[0] + kept.rstrip() + around[1]}
        return [*question[:at], shorter, *question[at + 1 :]]

    def _check(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            for token in self.special:
                if token in message["content"]:
                    raise UserError(
                        f"its text holds {token}, which the model's tokenizer reads as one of its special tokens. "
                        "Remove it from the data, or keep such rows out (validate.expectations)."
                    )


def _tokens_of(offsets: Sequence[Span], start: int, end: int) -> tuple[int, int]:
    """The tokens [first, last) that hold the characters [start, end), as Transformers' `char_to_token` finds them."""
    first = next((at for at, (_, until) in enumerate(offsets) if until > start), len(offsets))
    last = next((at for at in range(len(offsets) - 1, -1, -1) if offsets[at][0] < end), -1) + 1
    return first, max(first, last)


def _joined(exchanges: Sequence[Messages]) -> list[Mapping[str, str]]:
    return [message for exchange in exchanges for message in exchange]


@contextmanager
def naming(rows: pa.Table, row: int) -> Iterator[None]:
    """Have what is wrong with a row name it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"row {rows['row_id'][row].as_py()}: {error}") from error
