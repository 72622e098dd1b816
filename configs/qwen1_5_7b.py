r"""Qwen1.5-7B-Chat with the paper's hyper-parameters: 128 rows of 3,072 tokens, 1 + 3 epochs.

    python tools/medcare.py --config=configs/qwen1_5_7b.py --workdir=runs/medcare-7b \
        --config.base.path=models/Qwen1.5-7B-Chat \
        --config.mka.files="('data/1-stage/train.json',)" \
        --config.da.files="('data/2-stage/train.json',)" \
        --config.evaluation.folder=data/test

The base and MedCareData are downloaded by the user. Targets and constraint are this project's
defaults; the paper's own are data.targets=reference, data.over_long=cut, constraint.kind=penalty,
constraint.basis=span and constraint.freeze_knowledge=False. Difference from base.py: the global
batch is cut into microbatches.

Planned for v5e:4x4, one row a chip and microbatch: MKA 3.83 GiB a chip, DA 3.61, 2,418 to 2,905
tokens/s a chip; with compute.remat=products MKA 11.73 GiB and 2,952 to 3,852 tokens/s a chip.
See docs/performance.md.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The run."""
    config = base.get_config()
    config.data.accumulation = 8
    return config
