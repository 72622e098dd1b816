r"""Qwen1.5-14B-Chat with the paper's hyper-parameters: 128 rows of 3,072 tokens, 1 + 3 epochs.

    python tools/medcare.py --config=configs/qwen1_5_14b.py --workdir=runs/medcare-14b \
        --config.base.path=models/Qwen1.5-14B-Chat \
        --config.mka.files="('data/1-stage/train.json',)" \
        --config.da.files="('data/2-stage/train.json',)" \
        --config.evaluation.folder=data/test

The base and MedCareData are downloaded by the user. Targets and constraint are this project's
defaults; the paper's own are data.targets=reference, data.over_long=cut, constraint.kind=penalty,
constraint.basis=span and constraint.freeze_knowledge=False. Difference from base.py: the global
batch is cut into microbatches.

Planned for v5e:8x8, one row a chip: MKA 4.33 GiB a chip, 1,407 to 1,722 tokens/s a chip, DA 3.96
GiB; for v5e:4x4, with a microbatch of one row a chip, MKA 5.76 GiB. See docs/performance.md.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The run."""
    config = base.get_config()
    config.data.accumulation = 8
    return config
