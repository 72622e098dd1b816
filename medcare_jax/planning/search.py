"""Which mesh, microbatch and remat policy is fastest on a slice, among those that fit."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import AbstractMesh

from medcare_jax.planning.worker import PlanError, plan_in_subprocess
from medcare_jax.sharding import AXES, ShardingError, check_rows

REMATS = ("full", "ffn", "products")


def candidates(settings: dict[str, Any], devices: int, slices: int) -> Iterator[dict[str, Any]]:
    """Settings to try: base cut over each slice or whole on each device, 1, 2 or 4 rows at once."""
    rows = settings["data"]["rows"]
    for data in dict.fromkeys((slices, devices)):
        for at_once in (1, 2, 4):
            if rows % (devices * at_once):
                continue
            for remat in REMATS:
                changed = copy.deepcopy(settings)
                changed["mesh"] |= {"data": data, "fsdp": devices // data, "tensor": 1}
                changed["data"]["accumulation"] = rows // (devices * at_once)
                changed["compute"]["remat"] = remat
                yield changed


def search(
    settings: dict[str, Any],
    stage: str,
    topology: str,
    slices: int,
    *,
    devices: int,
    tell: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Plans that fit, the fastest first; each takes a compilation of minutes.

    Args:
      settings: As for `plan_in_subprocess`.
      stage: As there.
      topology: As there.
      slices: As there.
      devices: In all slices.
      tell: Called with each plan as it is made, or with `{"error": ...}`.

    Raises:
      PlanError: The rows cannot be shared out among so many devices, so there is nothing to try.
    """
    try:
        check_rows(
            AbstractMesh((1, devices, 1), AXES), rows=settings["data"]["rows"], accumulation=1
        )
    except ShardingError as error:
        raise PlanError(str(error)) from None
    found = []
    smallest_failure: dict[tuple[int, str], int] = {}
    for candidate in candidates(settings, devices, slices):
        place = (candidate["mesh"]["data"], candidate["compute"]["remat"])
        rows = candidate["data"]["rows"] // candidate["data"]["accumulation"]
        if rows >= smallest_failure.get(place, rows + 1):
            continue  # fewer rows at once did not fit already
        try:
            plan = plan_in_subprocess(candidate, stage, topology, slices)
        except PlanError as error:
            tell({"error": str(error)})
            continue
        tell(plan)
        if plan["fits"]:
            found.append(plan)
        else:
            smallest_failure[place] = rows
    return sorted(found, key=lambda plan: sum(plan["step_seconds"]))
