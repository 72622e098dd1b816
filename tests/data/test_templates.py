"""Chat templates: the same text on any day, and no message in an error."""

import datetime
import re
import traceback

import numpy as np
import pytest
import transformers.utils.chat_template_utils as hf
from transformers import PreTrainedTokenizerFast

from medcare_jax.data.chat import QWEN_TEMPLATE, encode_dialogue, encode_dialogues, encode_prompt
from medcare_jax.data.records import Record, RecordError, Turn
from medcare_jax.data.templates import DAY, render

ASKED = [{"role": "user", "content": "private"}]
RECORD = Record("1", (Turn("human", "private"), Turn("gpt", "two")), None, "f.json:4")
# As Llama 3.2 asks for the day, and as a macro would.
DATED = (
    "{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}\n"
    "{% macro now() %}{{ strftime_now(format='%A %Y-%m-%d %H:%M %-d') }}{% endmacro %}"
    "<|im_start|>system\n{{ day }}|{{ now() }}<|im_end|>\n"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def named_tokenizer(byte_tokenizer):
    """A tokenizer that knows its folder, as one that was read from there."""
    inner = byte_tokenizer.backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=inner, name_or_path="models/base")


def on_day(monkeypatch, year: int) -> None:
    """Makes it the first of January for transformers."""

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, 1, 1, tzinfo=tz)

    monkeypatch.setattr(hf, "datetime", Day)


def test_tokens_are_the_same_on_any_day(byte_tokenizer, monkeypatch):
    made = []
    for year in (2030, 2031):
        on_day(monkeypatch, year)
        example = encode_dialogue(RECORD, byte_tokenizer, template=DATED)
        prompt = encode_prompt(ASKED, byte_tokenizer, template=DATED)
        np.testing.assert_array_equal(example.tokens[: len(prompt)], prompt)
        made.append(example.tokens.tolist())
    assert made[0] == made[1]
    text = byte_tokenizer.decode(prompt)
    assert f"system\n{DAY:%d %b %Y}|{DAY:%A %Y-%m-%d} 00:00 {DAY.day}<|im_end|>" in text


@pytest.mark.parametrize("start", ["", "\n", "  {% if true %}\n x{% endif %}\n", " \n{{ 1 }}"])
def test_the_fixed_day_changes_nothing_else(byte_tokenizer, start):
    template = start + QWEN_TEMPLATE
    expected = byte_tokenizer.apply_chat_template(ASKED, chat_template=template, tokenize=False)
    dated = template + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    for each in (template, dated):
        assert render(ASKED, byte_tokenizer, each, is_prompt=False) == expected


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ ''.encode(messages[0]['content']) }}", "LookupError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ '%d' | format(messages[0]['content']) }}", "TypeError"),
        ("{{ ''.index(messages[0]['content']) }}", "ValueError"),
        ("{{ nothing(messages[0]['content']) }}", "UndefinedError"),
    ],
)
def test_no_failure_of_a_template_shows_a_message(named_tokenizer, template, kind):
    with pytest.raises(RecordError) as record:
        encode_dialogue(RECORD, named_tokenizer, template=template)
    with pytest.raises(ValueError, match=kind) as prompt:
        encode_prompt(ASKED, named_tokenizer, template=template)
    assert str(record.value).startswith("f.json:4: conversations: ")
    for caught in (record, prompt):
        assert "models/base" in str(caught.value)
        assert kind in str(caught.value)
        assert "private" not in "".join(traceback.format_exception(caught.value))


def test_a_template_that_is_none_names_the_tokenizer_and_not_the_data(named_tokenizer):
    for template in ("a\n{% for %}", "a\n{{ strftime_now('%d') | nofilter }}", "a\n{% frob %}"):
        problem = "models/base: chat template, line 2: expected a Jinja template"
        with pytest.raises(ValueError, match=re.escape(problem)) as caught:
            encode_dialogues([RECORD], named_tokenizer, template=template)
        assert not isinstance(caught.value, RecordError)
        with pytest.raises(ValueError, match=re.escape(problem)):
            encode_prompt(ASKED, named_tokenizer, template=template)
