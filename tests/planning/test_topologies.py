"""Names of slices: what is one, what is refused and how."""

import pytest

from medcare_jax.planning import topologies
from medcare_jax.planning.topologies import CHIPS, TopologyError, compile_devices, parse


def test_devices_and_chips():
    assert (parse("v5e:4x4").devices, parse("v5e:4x4").chips) == (16, 16)
    assert (parse("v4:2x2x2").devices, parse("v4:2x2x2").chips) == (16, 8)
    assert parse("v5p:2x2x4", slices=2).devices == 32


def test_devices_of_one_chip_share_its_links():
    assert {name: chip.links * chip.per_chip for name, chip in CHIPS.items()} == {
        "v4": 6,
        "v5e": 4,
        "v5p": 6,
        "v6e": 4,
    }


@pytest.mark.parametrize("name", ["v5litepod-16", "v7x:2x2", "v5e:2x2x2", "v5p:2x2", "v5e:0x4", ""])
def test_what_is_no_slice_is_refused_by_name(name):
    with pytest.raises(TopologyError, match="does not exist; expected ") as caught:
        parse(name)
    assert repr(name) in str(caught.value)


def test_no_slices_is_refused():
    with pytest.raises(TopologyError, match="slices = 0"):
        parse("v5e:4x4", slices=0)


@pytest.mark.parametrize(("said", "reason"), [("", "RuntimeError"), ("no\nmore", "no")])
def test_what_the_compiler_refuses_is_told_whatever_it_says(monkeypatch, said, reason):
    def refuse(**asked):
        raise RuntimeError(said)

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", refuse)
    with pytest.raises(TopologyError, match=f"refuses topology 'v5e:4x4' x 1: {reason}\n"):
        compile_devices(parse("v5e:4x4"))
