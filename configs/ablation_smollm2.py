"""The ablation on SmolLM2-135M-Instruct and ICD-10-CM: hours on a laptop.

    python tools/ablate.py --config=configs/ablation_smollm2.py --workdir=runs/ablation_smollm2
    python tools/ablate.py --config=configs/ablation_smollm2.py:follow_up --workdir=runs/follow_up

The second asks what the table of the first left open; its cells were chosen after looking at it.
Few facts seen thrice, then a short and hot DA on few notes seen thrice: chosen so that DA without
a constraint forgets. Each cell is kept once it is done, so the study may be stopped at any time.
"""

import ml_collections

from configs import smollm2_135m

_NONE = {"name": "none", "constraint": {"kind": "none"}}
_PROTOCOL = (
    _NONE,
    {"name": "projection span"},
    {"name": "projection activation 0.8", "constraint": {"basis": "activation", "energy": 0.8}},
    {"name": "projection activation 0.95", "constraint": {"basis": "activation"}},
    {"name": "penalty 1", "constraint": {"kind": "penalty"}},
    {"name": "none, knowledge learns", "constraint": {"kind": "none", "freeze_knowledge": False}},
)
_FOLLOW_UP = (
    _NONE,
    {"name": "projection activation 0.5", "constraint": {"basis": "activation", "energy": 0.5}},
    # What learning less buys without any constraint.
    {**_NONE, "name": "none, half the rate", "da": {"learning_rate": 1e-3}},
)
_CELLS = {"protocol": _PROTOCOL, "follow_up": _FOLLOW_UP}


def get_config(cells: str = "protocol") -> ml_collections.ConfigDict:
    """The study with the cells of that name: `protocol` or `follow_up`."""
    if cells not in _CELLS:
        raise ValueError(f"no cells {cells!r}; expected one of {', '.join(_CELLS)}")
    study = ml_collections.ConfigDict()
    study.run = _run()
    study.seeds = (0, 1, 2, 3, 4)
    study.baseline = "none"
    study.cells = _CELLS[cells]
    return study.lock()


def _run() -> ml_collections.ConfigDict:
    """What all cells share."""
    config = smollm2_135m.get_config()
    config.constraint.basis, config.constraint.energy = "span", 0.95  # if a cell says no other
    config.icd10.mka_knowledge = 160
    config.icd10.mka_alignment = 24
    config.icd10.da_alignment = 72
    config.icd10.test = 80
    config.mka.epochs = 3
    config.mka.learning_rate = 1e-3
    config.da.epochs = 3
    config.da.learning_rate = 2e-3
    config.checkpoint.every_steps = 5
    config.evaluation.tasks = ("icd10_retained", "icd10_coding")
    return config
