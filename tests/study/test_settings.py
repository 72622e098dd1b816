"""What a study may say, and that its cells share what they must share."""

import pytest

from configs import ablation_smollm2, ablation_tiny
from medcare_jax.settings import SettingsError
from medcare_jax.study.settings import KEEP_NOISE, MEDCARE, ONE_LORA, make_study


@pytest.fixture
def config():
    return ablation_tiny.get_config().to_dict()


def test_the_real_study_and_its_follow_up_share_run_and_baseline():
    protocol, follow_up = (
        make_study(ablation_smollm2.get_config(cells)) for cells in ("protocol", "follow_up")
    )
    assert protocol == make_study(ablation_smollm2.get_config())
    assert protocol.seeds == follow_up.seeds == (0, 1, 2, 3, 4)
    assert protocol.cells[0] == follow_up.cells[0]
    shared = {cell.name for cell in protocol.cells} & {cell.name for cell in follow_up.cells}
    assert shared == {protocol.baseline} == {follow_up.baseline}
    with pytest.raises(ValueError, match="no cells 'folow_up'; expected one of protocol, follow"):
        ablation_smollm2.get_config("folow_up")


def test_the_tiny_study_has_every_variant_and_five_seeds(config):
    study = make_study(ablation_tiny.get_config())
    assert study == make_study(config)
    assert study.seeds == (0, 1, 2, 3, 4)
    constraints = [cell.settings.constraint for cell in study.cells]
    assert {c.kind for c in constraints} == {"none", "penalty", "projection"}
    assert {c.basis for c in constraints} == {"span", "svd", "activation"}
    assert len({c.penalty_weight for c in constraints if c.kind == "penalty"}) >= 3
    assert len({c.energy for c in constraints if c.basis == "activation"}) >= 3
    assert {c.freeze_knowledge for c in constraints} == {True, False}
    assert {cell.method for cell in study.cells} == {MEDCARE, KEEP_NOISE, ONE_LORA}


def test_one_lora_is_of_the_size_of_knowledge_and_alignment_together(config):
    by_name = {cell.name: cell for cell in make_study(config).cells}
    one, two = by_name["one LoRA"].settings.adapters, by_name["none"].settings.adapters
    ranks = [two.rank_of(name, is_attention=False) for name in ("knowledge", "alignment")]
    assert one.rank_of("knowledge", is_attention=False) == sum(ranks)
    assert one.scale == two.scale


def test_a_study_without_one_of_its_keys_is_refused(config):
    with pytest.raises(SettingsError, match="config lacks seeds, baseline"):
        make_study({key: config[key] for key in ("run", "cells", "facts")})


def test_a_seed_changes_nothing_but_the_seed(config):
    study = make_study(config)
    settings = study.with_seed(study.cells[0], 7)
    assert settings.seed == 7
    assert settings.da == study.cells[0].settings.da


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "expected at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"baseline": "nothing"}, "baseline = 'nothing'; allowed are none, penalty"),
        ({"sedes": (0,)}, "unknown config key sedes; did you mean seeds?"),
        ({"seeds": 3}, "seeds = 3; expected a list"),
        ({"facts": {"fcats": 8}}, "unknown config key facts.fcats; did you mean facts.facts?"),
        ({"drawn": {"foldr": "x"}}, "unknown config key drawn.foldr; did you mean drawn.folder?"),
        ({"drawn": {"folder": "x"}}, "config lacks drawn.exam, drawn.written"),
        ({"cells": ({"nmae": "none"},)}, "cells[0] has no name; it has nmae"),
        ({"cells": ({"name": "none", "da": 3},)}, "cells.none.da = 3; expected a section"),
        ({"run": {}}, "config lacks base, compute"),
        ({"cells": ({"name": "none"}, {"name": "none"})}, "expected each name once"),
        ({"cells": ({"name": "none", "method": "magic"},)}, "cells.none.method = 'magic'"),
        ({"cells": ({"name": "none", "mka": {"epochs": 2}},)}, "cells.none changes mka"),
        ({"cells": ({"name": "none", "adapters": {"rank": 2}},)}, "cells.none changes adapters"),
        ({"cells": ({"name": "none", "da": {"epochs": 9}},)}, "cells.none changes da.epochs; all"),
        ({"cells": ({"name": "none", "da": {"epoch": 2}},)}, "cells.none: unknown config key"),
        (
            {"cells": ({"name": "none", "constraint": {"kind": "x"}},)},
            "cells.none: constraint.kind",
        ),
    ],
)
def test_what_cannot_be_a_study_is_refused(config, change, message):
    with pytest.raises(SettingsError) as caught:
        make_study({**config, **change})
    assert message in str(caught.value)
