"""Conversations: what fits, commands, text as it comes; and a chat in a real pseudo-terminal."""

import contextlib
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from medcare_jax.conversion.bases import byte_tokenizer
from medcare_jax.run.chat import ChatError, ChatSettings, Conversation, chat, pieces
from medcare_jax.run.opening import open_folded
from tests.run.workdirs import write_base

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "chat.py"
# Of one token per byte: 40 are the markers and roles of a question with its answer to come.
TOKENIZER = byte_tokenizer()


def texts(conversation):
    return [each["content"] for each in conversation.messages]


def test_the_oldest_exchange_is_left_out_when_room_is_short():
    conversation = Conversation(TOKENIZER, room=110, system="Be brief.")
    whole = len(conversation.ask("a" * 20))
    conversation.answer("b" * 20)
    assert whole < 110
    prompt = TOKENIZER.decode(conversation.ask("c" * 20))
    assert conversation.num_left_out == 2
    assert "a" * 20 not in prompt
    assert "Be brief." in prompt
    assert "c" * 20 in prompt
    assert len(texts(conversation)) == 4, "nothing is forgotten for good"


def test_a_message_that_cannot_fit_is_not_added():
    conversation = Conversation(TOKENIZER, room=110, system="Be brief.")
    with pytest.raises(ChatError, match=r"tokens, but the context has room for 110"):
        conversation.ask("a" * 200)
    with pytest.raises(ChatError, match="control token"):
        conversation.ask("a<|im_end|>b")
    assert texts(conversation) == ["Be brief."]


def test_resetting_keeps_replaces_or_removes_the_system_prompt():
    conversation = Conversation(TOKENIZER, room=999, system="Be brief.")
    conversation.ask("a")
    conversation.reset()
    assert texts(conversation) == ["Be brief."]
    conversation.reset("Be long.")
    assert texts(conversation) == ["Be long."]
    conversation.reset("")
    assert texts(conversation) == []


def test_a_character_comes_when_all_its_bytes_have():
    ids = list("aé药b".encode())
    assert list(pieces(iter(ids), TOKENIZER)) == ["a", "é", "药", "b", ""]
    assert "".join(pieces(iter(ids[:-2]), TOKENIZER)).startswith("aé")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "base")


def talk(opened, lines, **settings):
    """What is shown when these lines are typed."""
    shown, left = [], iter(lines)

    def read():
        line = next(left, EOFError)
        if isinstance(line, type):
            raise line
        return line

    chat(opened, ChatSettings(max_new_tokens=6, **settings), read=read, write=shown.append)
    return "".join(shown)


def test_commands(base):
    opened = open_folded(str(base))
    shown = talk(opened, ["/help", "/nonsense", "", KeyboardInterrupt, "/system Hm.", "/reset"])
    assert "/reset" in shown
    assert "no command /nonsense" in shown
    assert "Ctrl-D ends the chat" in shown
    assert "another system prompt" in shown
    assert "forgotten" in shown
    assert talk(opened, ["/quit", "never read"]).count("\n") == 1


def test_answers_are_those_of_their_seed_and_bad_messages_end_nothing(base):
    opened = open_folded(str(base))
    lines = ["What is asthma?", "a<|im_end|>b", "And gout?"]
    one = talk(opened, lines, temperature=1.0, seed=3)
    assert "control token" in one
    assert one == talk(opened, lines, temperature=1.0, seed=3)
    assert one != talk(opened, lines, temperature=1.0, seed=9)


class Terminal:
    """A process in a pseudo-terminal."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, str(TOOL), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(TOOL.parents[1]), "TERM": "dumb"},
        )
        os.close(slave)
        self.screen = ""

    def wait_for(self, text, seconds=600):
        """Reads until the text has come; returns what came up to it and forgets that."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} did not come:\n{self.screen}")
            if select.select([self.master], [], [], 1.0)[0]:
                self.screen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.screen = self.screen.partition(text)
        return before

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt_until(self, text):
        """Presses Ctrl-C until the text comes, as a person does.

        `input` shows its prompt a moment before it waits; a signal in between wakes nothing.
        """
        for _ in range(20):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                return self.wait_for(text, seconds=10)
        raise TimeoutError(f"{text!r} did not come:\n{self.screen}")


def test_a_chat_in_a_terminal(base):
    terminal = Terminal(f"--model={base}", "--max_new_tokens=5", "--temperature=0")
    try:
        terminal.wait_for("/help shows the commands.")
        terminal.wait_for("> ")
        terminal.type("What is asthma?\n")
        terminal.wait_for("What is asthma?")
        terminal.wait_for("> ")
        terminal.interrupt_until("Ctrl-D ends the chat")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
