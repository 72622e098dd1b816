"""Messages to text by a tokenizer's chat template: the same on any day, refused without a quote.

Templates are programs of other people. Some ask for the day (Llama 3, SmolLM3, gpt-oss), and any
may fail with an error that quotes a message.
"""

import datetime
from collections.abc import Sequence

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

__all__ = ["DAY", "Message", "TemplateRefusal", "render"]

Message = dict[str, str]

# The day of every prompt, in training and behind it. With today's, tokens and so the fingerprint of
# the data would change overnight: no run could be resumed, and hosts would differ at midnight. It
# is the one that Llama 3's own template names where it is told none.
DAY = datetime.datetime(2024, 7, 26)
_CODES = {f"%{code}": DAY.strftime(f"%{code}") for code in "aAbBcdHIjmMpSUwWxXyY"}
_CODES |= {"%-d": str(DAY.day), "%-m": str(DAY.month), "%e": str(DAY.day)}
# transformers lets no function through to a template, so the fixed day is a macro of its own before
# the template's first character. Jinja drops the line feed behind it, as if nothing stood there.
_FIXED_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace({code!r}, {text!r})" for code, text in _CODES.items())
    + " }}{% endmacro %}\n"
)


class TemplateRefusal(ValueError):
    """A template gives no text for some messages; says what kind of error, and quotes nothing."""


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    *,
    is_prompt: bool,
    is_begun: bool = False,
) -> str:
    """Returns the text of a dialogue, in which today is always `DAY`.

    Args:
      messages: ``{"role": "system" | "user" | "assistant", "content": text}`` each.
      tokenizer: Whose special tokens the template may name.
      template: The Jinja chat template.
      is_prompt: Whether the assistant is to go on, behind its header.
      is_begun: Whether it is to go on inside the last message.

    Raises:
      TemplateRefusal: The template fails on these messages.
      ValueError: It is no Jinja template; names the tokenizer's folder and the line.
    """
    lead = _FIXED_DAY if "strftime_now" in template else ""
    owner = tokenizer.name_or_path or "the tokenizer"
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=lead + template,
            tokenize=False,
            add_generation_prompt=is_prompt,
            continue_final_message=is_begun,
        )
    except TemplateSyntaxError as error:
        line = error.lineno - lead.count("\n")
        problem = f"expected a Jinja template, got: {error.message}; mend it"
        raise ValueError(f"{owner}: chat template, line {line}: {problem}") from None
    except Exception as error:  # whatever a program may raise, and its text may be a message's
        raise TemplateRefusal(_refusal(error, owner)) from None
    return str(text)


def _refusal(error: Exception, owner: str) -> str:
    """What a template's error says without its text."""
    if type(error) is TemplateError:  # templates raise it themselves, by `raise_exception`
        return "the chat template refuses these messages; check their roles and order"
    kind = type(error).__name__
    return f"the chat template of {owner} fails on these messages ({kind}); mend the template"
