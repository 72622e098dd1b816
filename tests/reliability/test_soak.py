"""Memory and speed stay over a long run, and kills change nothing.

`MEDCARE_SOAK_MINUTES` says how long.
"""

import dataclasses
import os

import pytest

from tests.reliability.soak import KEEP, KILLS, soak


@pytest.mark.slow
def test_memory_and_speed_stay_and_kills_change_nothing(tmp_path):
    found = soak(tmp_path, float(os.environ.get("MEDCARE_SOAK_MINUTES", "3")))
    print(dataclasses.asdict(found))
    assert found.is_same
    assert found.kills == KILLS
    assert found.growth_percent < 2
    assert found.files_last <= found.files_first + 2
    assert found.folders <= KEEP
    assert found.speed_percent > 70  # other work on the machine counts too
