"""Chat templates: a conversation in the form that a model was trained with, and where in it the answers stand.

A template is a Jinja program that comes with a model. It runs in Jinja's sandbox, set up as Transformers sets it up
(`apply_chat_template`), but without Transformers, whose import would cost each stage seconds.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from tunewright.errors import UserError

if TYPE_CHECKING:
    import jinja2

Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]
"""Characters [start, end)."""

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

PLAIN = """\
{% for message in messages %}
{{ message['role'].capitalize() + ': ' + message['content'] }}
{%- if message['role'] == 'assistant' %}
{{ eos_token }}
{%- endif %}
{{ '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ 'Assistant:' }}
{%- endif %}
"""

BARE = """\
{% for message in messages %}
{{ message['content'] }}
{%- if message['role'] == 'assistant' %}
{{ eos_token }}
{%- endif %}
{{ '\\n' }}
{%- endfor %}
"""

NAMED = {"chatml": CHATML, "plain": PLAIN, "bare": BARE}
"""chatml: OpenAI's form, of many models. plain: `User: …`, `Assistant: …`, for a model whose vocabulary has no marker
of turns. bare: the contents alone, one a line, each answer closed by the end of a text."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What a template is told when it asks for the day: the same inputs must give the same bytes tomorrow.
TODAY = datetime.date(2024, 7, 26)


def named_or_jinja(asked: str) -> str:
    """A name of `NAMED` or a template, for a task's own params."""
    if asked not in NAMED and "{" not in asked:
        raise ValueError(f"one of {', '.join(NAMED)}, or a template in Jinja")
    return asked


class ChatTemplate:
    """One model's template.

    source: in Jinja.   special_tokens: the model's, by role, which templates name as variables (`eos_token`).

    Raises
        UserError  for a source that is no Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = {"bos_token": "", "eos_token": "", **special_tokens}
        self._program, self._tracker = _compiled(source)

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The conversation as the model reads it; with a generation prompt, up to where its answer begins.

        Raises
            UserError  for a conversation that the template refuses, as many do where roles do not alternate.
        """
        return "".join(self._blocks(messages, add_generation_prompt))

    def with_answers(self, messages: Messages) -> tuple[str, list[Span]]:
        """The conversation, and where the model's own part of it stands: each answer with what ends it.

        A template that marks answers (`{% generation %}`) is believed. Of any other, an answer is what the
        conversation goes on with after the generation prompt, without the white space after the end of the turn.

        Raises
            UserError  for a template that writes the same turns in another way once more of them follow.
        """
        if GENERATION.search(self.source):
            text = ""
            with self._tracker.watching():
                for block in self._blocks(messages, False):
                    text += block
                    self._tracker.written = len(text)
            return text, self._tracker.spans
        text = self.render(messages)
        spans: list[Span] = []
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:at], add_generation_prompt=True)
                through = self.render(messages[: at + 1])
                if not (through.startswith(before) and text.startswith(through)):
                    raise UserError(
                        "the chat template writes a conversation's beginning in another way once more of it follows, "
                        "so its answers can't be told apart. Name another in task.chat_template (chatml, plain), or "
                        "give a template of your own there that marks answers with {% generation %}."
                    )
                spans.append((len(before), len(before) + _answer_length(through[len(before) :], message["content"])))
        return text, spans

    def end_of_answer(self) -> str:
        """What the model writes after an answer's own text, such as `<|im_end|>`; empty where that is nothing."""
        text, spans = self.with_answers([{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A!"}])
        start, end = spans[-1]
        return text[start:end].partition("A!")[2]

    def _blocks(self, messages: Messages, add_generation_prompt: bool) -> Iterator[str]:
        import jinja2

        try:
            yield from self._program.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses a conversation: {error}") from error


def _answer_length(written: str, content: str) -> int:
    """How much of what follows a generation prompt is the answer: its text, and what ends it."""
    content = content.strip()
    at = written.find(content)
    if at < 0:  # the template changed the text
        return len(written.rstrip() or written)
    after = written[at + len(content) :]
    return at + len(content) + len(after.rstrip() or after)


class _Tracker:
    """Notes which characters stand inside `{% generation %}` blocks, while it is asked to."""

    def __init__(self) -> None:
        self.active = False
        self.written = 0
        self.spans: list[Span] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.active, self.written, self.spans = True, 0, []
        try:
            yield
        finally:
            self.active = False

    def note(self, text: str) -> None:
        if self.active:
            self.spans.append((self.written, self.written + len(text)))


@cache
def _compiled(source: str) -> tuple[jinja2.Template, _Tracker]:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    tracker = _Tracker()

    class Generation(jinja2.ext.Extension):
        """The tag `{% generation %} … {% endgeneration %}`, which writes what is inside it."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja has it

        def parse(self, parser: Any) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_noted"), [], [], body).set_lineno(line)

        def _noted(self, caller: Any) -> str:
            text: str = caller()
            tracker.note(text)
            return text

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=TODAY.strftime)
    try:
        return environment.from_string(source), tracker
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is no Jinja template: {error}") from error
