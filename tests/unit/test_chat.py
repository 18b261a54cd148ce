"""A conversation as one string, and back."""

from __future__ import annotations

import pytest

from tunewright.chat import parse, render

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is the moon larger?\nThan the sun?"},
    {"role": "assistant", "content": "No."},
]


def test_a_marker_stands_on_its_own_line_before_each_content() -> None:
    assert render(TALK) == ("<|system|>\nBe brief.\n<|user|>\nIs the moon larger?\nThan the sun?\n<|assistant|>\nNo.")


def test_what_is_rendered_is_parsed_to_the_same_messages() -> None:
    assert parse(render(TALK)) == TALK


@pytest.mark.parametrize("space", [" ", "", "\n\n", "\t\n "])
def test_any_white_space_may_stand_around_a_marker(space: str) -> None:
    text = f"{space}<|user|>{space}Hi{space}<|assistant|>{space}Hello{space}"
    assert parse(text) == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_white_space_at_the_ends_of_a_content_is_no_part_of_it_and_an_empty_one_stays() -> None:
    text = render([{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": ""}])
    assert text == "<|user|>\nHi\n<|assistant|>\n"
    assert parse(text) == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no message"),
        ([{"role": "bot", "content": "Hi"}], "expected one of system, user, assistant"),
        ([{"role": "user", "content": "now <|assistant|> speaks"}], "holds the marker of a role"),
    ],
)
def test_what_would_not_come_back_is_not_rendered(messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(messages)


@pytest.mark.parametrize("text", ["", "Hi", "Hi <|user|> there", "<|bot|>\nHi"])
def test_a_text_that_begins_with_no_marker_is_no_conversation(text: str) -> None:
    with pytest.raises(ValueError, match="does not begin with the marker"):
        parse(text)
