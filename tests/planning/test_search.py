"""Which settings are tried, which are passed over, and in which order they come out."""

import dataclasses

import pytest

from medcare_jax.planning import search
from medcare_jax.planning.worker import PlanError
from medcare_jax.settings import make_settings
from medcare_jax.sharding import check_rows
from tests.planning.runs import settings

ASKED = dataclasses.asdict(settings(**{"data.rows": 32}))


class Devices:
    """A mesh as far as its shape goes."""

    def __init__(self, mesh):
        self.shape = {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}


def test_candidates_are_runs_that_a_mesh_can_cut():
    found = [make_settings(each) for each in search.candidates(ASKED, 8, 1)]
    assert len(found) == 2 * 3 * len(search.REMATS)
    for each in found:
        rows, accumulation = each.data.rows, each.data.accumulation
        assert rows == 32
        assert check_rows(Devices(each.mesh), rows=rows, accumulation=accumulation) in (1, 2, 4)
    assert len({repr(each) for each in found}) == len(found)
    assert not list(search.candidates(ASKED, 64, 1))
    assert ASKED == dataclasses.asdict(settings(**{"data.rows": 32}))  # not changed by it


def test_of_several_slices_each_holds_whole_replicas():
    meshes = [each["mesh"] for each in search.candidates(ASKED, 8, 2)]
    assert {(mesh["data"], mesh["fsdp"]) for mesh in meshes} == {(2, 4), (8, 1)}


def test_one_device_is_tried_once():
    assert len(list(search.candidates(ASKED, 1, 1))) == 3 * len(search.REMATS)


def test_rows_that_the_devices_cannot_share_are_refused_before_anything_is_tried():
    with pytest.raises(PlanError, match=r"data\.rows = 32 cannot .* expected a multiple of 64"):
        search.search(ASKED, "mka", "v5e:8x8", 1, devices=64, tell=print)


def run(monkeypatch, plan):
    """The search over what a function of the settings says; what was told, tried and found."""
    tried, told = [], []

    def answer(candidate, *place):
        tried.append(candidate)
        assert place == ("mka", "v5e:2x4", 1)
        return plan(candidate)

    monkeypatch.setattr(search, "plan_in_subprocess", answer)
    found = search.search(ASKED, "mka", "v5e:2x4", 1, devices=8, tell=told.append)
    return tried, told, found


def test_the_fastest_that_fits_comes_first(monkeypatch):
    def plan(candidate):
        seconds = candidate["data"]["accumulation"] + (candidate["compute"]["remat"] == "full")
        return {"fits": True, "step_seconds": [seconds, 2 * seconds]}

    tried, told, found = run(monkeypatch, plan)
    assert len(tried) == len(told) == len(found) == 18
    assert [sum(each["step_seconds"]) for each in found] == sorted(
        sum(each["step_seconds"]) for each in told
    )


def test_more_rows_are_not_tried_where_fewer_did_not_fit(monkeypatch):
    def plan(candidate):
        fits = candidate["compute"]["remat"] == "full"
        return {"fits": fits, "step_seconds": [1.0, 2.0]}

    tried, told, found = run(monkeypatch, plan)
    per_remat = {remat: 0 for remat in search.REMATS}
    for candidate in tried:
        per_remat[candidate["compute"]["remat"]] += 1
    assert per_remat == {"full": 6, "ffn": 2, "products": 2}
    assert len(told) == 10
    assert len(found) == 6


def test_what_is_refused_is_told_and_passed_over(monkeypatch):
    def plan(candidate):
        raise PlanError("no such slice")

    _, told, found = run(monkeypatch, plan)
    assert found == []
    assert set(map(str, told)) == {"{'error': 'no such slice'}"}
