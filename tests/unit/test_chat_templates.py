"""Chat templates: the same text, tokens and answers as Transformers finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tunewright.chat_templates import BARE, CHATML, NAMED, PLAIN, ChatTemplate, named_or_jinja
from tunewright.errors import UserError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Good film?"},
    {"role": "assistant", "content": "Très good.\n  It moves!"},
    {"role": "user", "content": "And the end?"},
    {"role": "assistant", "content": "Sad"},
]
MARKED = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}{{ message.content }}<|im_end|>{% endif %}

{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPECIAL = {"eos_token": "</s>"}


def answers(template: str, talk: list[dict[str, str]] = TALK) -> list[str]:
    text, spans = ChatTemplate(template, SPECIAL).with_answers(talk)
    return [text[start:end] for start, end in spans]


def test_chatml_is_written_as_it_is_known() -> None:
    assert ChatTemplate(CHATML, {}).render(TALK[:2], add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGood film?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_plain_forms() -> None:
    assert (
        ChatTemplate(PLAIN, SPECIAL).render(TALK[1:3]) == "User: Good film?\nAssistant: Très good.\n  It moves!</s>\n"
    )
    assert ChatTemplate(PLAIN, SPECIAL).render(TALK[1:2], add_generation_prompt=True) == "User: Good film?\nAssistant:"
    assert ChatTemplate(BARE, SPECIAL).render(TALK[1:3]) == "Good film?\nTrès good.\n  It moves!</s>\n"


@pytest.mark.parametrize(
    ("template", "end", "before"), [("chatml", "<|im_end|>", ""), ("plain", "</s>", " "), ("bare", "</s>", "")]
)
def test_an_answer_is_its_text_and_what_ends_it(template: str, end: str, before: str) -> None:
    found = ChatTemplate(NAMED[template], SPECIAL)
    assert answers(found.source) == [f"{before}Très good.\n  It moves!{end}", f"{before}Sad{end}"]
    assert found.end_of_answer() == end


def test_a_template_that_marks_answers_is_believed() -> None:
    assert answers(MARKED) == ["Très good.\n  It moves!<|im_end|>", "Sad<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN])
@pytest.mark.parametrize("prompt", [True, False])
def test_it_is_written_as_transformers_writes_it(template: str, prompt: bool, tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    theirs = tokenizer.apply_chat_template(TALK, chat_template=template, tokenize=False, add_generation_prompt=prompt)
    ours = ChatTemplate(template, {"eos_token": "<|im_end|>"}).render(TALK, add_generation_prompt=prompt)
    assert ours == theirs


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_it_marks_answers() -> None:
    rewriting = "{{ messages | length }}" + CHATML
    with pytest.raises(UserError, match=r"its answers can't be told apart"):
        answers(rewriting)


def test_a_conversation_that_the_template_refuses_is_the_user_s_to_mend() -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    with pytest.raises(UserError, match="refuses a conversation: user first"):
        ChatTemplate(strict, {}).render(TALK)


def test_what_is_no_template_is_refused() -> None:
    with pytest.raises(UserError, match="no Jinja template"):
        ChatTemplate("{% for %}", {})
    with pytest.raises(ValueError, match="one of chatml, plain, bare"):
        named_or_jinja("chat-ml")


def test_a_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(UserError, match="refuses a conversation"):
        ChatTemplate("{{ messages.append(1) }}", {}).render(TALK)
    with pytest.raises(UserError, match="refuses a conversation"):
        ChatTemplate("{{ ''.__class__.__mro__ }}", {}).render(TALK)


def test_the_day_is_always_the_same_one() -> None:
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}).render(TALK) == "26 Jul 2024"
