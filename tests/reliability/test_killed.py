"""The job under `kill -9` and SIGTERM at moments that chance picks, in every phase."""

import collections
import pathlib
import random
import shutil
import signal
import time
from typing import NamedTuple

import pytest

from tests.reliability import tiny_job

PHASES = ("starting", "evaluating", "training", "saving", "handing over", "exporting")
# Of a second, after the phase was seen: the longest of them takes about that long.
LONGEST_WAIT = 0.8
GRACE_SECONDS = 30.0


class Setting(NamedTuple):
    """What all lives of all workdirs share."""

    start: tiny_job.Warm
    data: pathlib.Path
    folder: pathlib.Path
    expected: tiny_job.Outcome


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A job that was left alone, and the means to start more."""
    folder = tmp_path_factory.mktemp("killed")
    data = tiny_job.write_data(folder / "data")
    with tiny_job.warm(folder / "cache") as start:
        start.start(tiny_job.arguments(data, folder / "alone"), folder / "log")
        assert start.wait() == 0, (folder / "log").read_text()[-3000:]
        yield Setting(start, data, folder, tiny_job.outcome(folder / "alone"))


class Lives:
    """Runs the command in one workdir after the other and ends it as it is told."""

    def __init__(self, setting: Setting, name: str) -> None:
        self._setting, self._name = setting, name
        self._workdir, self._log = setting.folder / f"{name}-0", setting.folder / f"{name}.log"
        self.finished = 0
        self.hit = collections.Counter[str]()

    def end_one(self, how: signal.Signals, wanted: str, wait: float) -> tuple[int, float] | None:
        """Ends a life some time after a phase was seen; exit code and seconds that it took.

        None if the run was done before that; then all that it left is compared.
        """
        argv = tiny_job.arguments(self._setting.data, self._workdir)
        self._log.unlink(missing_ok=True)
        pid = self._setting.start.start(argv, self._log)
        seen = tiny_job.wait_until(lambda: self._phase() == wanted, pid)
        if seen:
            time.sleep(wait)
        phase, sent = self._phase(), time.monotonic()
        tiny_job.end(pid, how)
        code = self._setting.start.wait()
        took = time.monotonic() - sent
        if code == 0 and (self._workdir / "report.html").exists() and self._is_done():
            self._check_whole()
            return None
        self.hit[phase] += 1
        tiny_job.check_nothing_false(self._workdir, self._setting.expected)
        return code, took

    def finish(self) -> None:
        """Lets the present workdir's run come to its end, and compares what it left."""
        argv = tiny_job.arguments(self._setting.data, self._workdir)
        self._setting.start.start(argv, self._log)
        assert self._setting.start.wait() == 0, self._log.read_text()[-3000:]
        self._check_whole()

    def said(self) -> str:
        """What the last life printed."""
        return self._log.read_text()

    def _phase(self) -> str:
        return tiny_job.phase(self._workdir, self._log)

    def _is_done(self) -> bool:
        return "report.html" in self.said()

    def _check_whole(self) -> None:
        """Everything is as it is in the run that was left alone; the next life begins anew."""
        assert tiny_job.outcome(self._workdir) == self._setting.expected
        assert not list(self._workdir.glob(".*partial"))
        shutil.rmtree(self._workdir)
        self.finished += 1
        self._workdir = self._setting.folder / f"{self._name}-{self.finished}"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [100])
def test_kill_at_random_moments_changes_nothing(setting, kills):
    chance, lives = random.Random(7), Lives(setting, "kill")
    while lives.hit.total() < kills:
        ended = lives.end_one(
            signal.SIGKILL, chance.choice(PHASES), chance.uniform(0, LONGEST_WAIT)
        )
        assert ended is None or ended[0] == -signal.SIGKILL, lives.said()[-3000:]
    lives.finish()
    print(f"{kills} kills: {dict(lives.hit)}; {lives.finished} runs came to their end")
    assert set(lives.hit) == set(PHASES)


@pytest.mark.slow
@pytest.mark.parametrize("times", [20])
def test_sigterm_at_random_moments_saves_and_ends_well(setting, times):
    chance, lives, longest = random.Random(8), Lives(setting, "term"), 0.0
    while lives.hit.total() < times:
        ended = lives.end_one(
            signal.SIGTERM, chance.choice(PHASES), chance.uniform(0, LONGEST_WAIT)
        )
        if ended is not None:
            assert ended[0] == 0, lives.said()[-3000:]
            longest = max(longest, ended[1])
    lives.finish()
    print(f"{times} ended: {dict(lives.hit)}; {lives.finished} runs to the end; {longest:.1f} s")
    assert longest < GRACE_SECONDS
