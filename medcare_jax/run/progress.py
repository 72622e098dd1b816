"""What a person sees while a run goes on: a bar per stage in a terminal, lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Headlines and progress of a run; silent if this process is not the one that speaks."""

    def __init__(self, *, is_shown: bool = True) -> None:
        """A display on the standard error stream."""
        self.console = Console(stderr=True, quiet=not is_shown, highlight=False)

    @property
    def is_live(self) -> bool:
        """Whether bars may be drawn: somebody looks on in a terminal."""
        return self.console.is_terminal and not self.console.quiet

    def headline(self, text: str) -> None:
        """Announces the next part of the run."""
        self.console.rule(Text(text, style="bold"), align="left")

    def line(self, text: str) -> None:
        """One line of news."""
        self.console.print(text, markup=False, soft_wrap=True)

    def bar(self, name: str, total: int) -> "Bar":
        """A progress bar, to be used as a context manager."""
        return Bar(self.console, name, total)


class Bar:
    """Progress of one part: a bar in a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=total, news="compiling")
        self._first: int | None = None
        self._last_line = self._start = 0.0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, step: int) -> None:
        """Says where a resumed part goes on from, and that the first step takes its time."""
        if step == self._total:
            self._console.print(f"{self._name}: done already, {step} steps")
        elif step:
            self._console.print(f"{self._name}: going on from step {step} of {self._total}")
        if step != self._total and not self._console.is_terminal:
            self._console.print(f"{self._name}: compiling")
        self._progress.update(self._task, completed=step)

    def update(self, step: int, numbers: dict[str, float]) -> None:
        """Shows that `step` of the total are done, and the numbers that a person looks at."""
        news = _news(numbers)
        self._progress.update(self._task, completed=step, news=news)
        now = time.monotonic()
        if self._first is None:  # compiling and what was done before tell nothing of the speed
            self._first, self._start = step, now
        is_due = now - self._last_line > _SECONDS_BETWEEN_LINES or step == self._total
        if is_due and not self._console.is_terminal:
            eta = ""
            if step > self._first:
                left = (now - self._start) / (step - self._first) * (self._total - step)
                eta = f"ETA {left:.0f} s"
            self._console.print(f"{self._name} {step}/{self._total} {news} {eta}", soft_wrap=True)
            self._last_line = now


def _news(numbers: dict[str, float]) -> str:
    """Loss, speed and constraint in a few words."""
    parts = []
    if "loss" in numbers:
        parts.append(f"loss {numbers['loss']:.4f}")
    if "tokens_per_second" in numbers:
        parts.append(f"{numbers['tokens_per_second']:.0f} tok/s")
    if numbers.get("penalty"):
        parts.append(f"penalty {numbers['penalty']:.3g}")
    if numbers.get("leak"):
        parts.append(f"leak {numbers['leak']:.1e}")
    return "  ".join(parts)
