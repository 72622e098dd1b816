r"""Qwen1.5-14B-Chat by the paper's recipe: 128 rows of 3,072 tokens a step, MKA 1 epoch, DA 3.

    python tools/medcare.py --config=configs/qwen1_5_14b.py --workdir=runs/medcare-14b \
        --config.base.path=models/Qwen1.5-14B-Chat \
        --config.mka.files="('data/1-stage/train.json',)" \
        --config.da.files="('data/2-stage/train.json',)" \
        --config.evaluation.folder=data/test

The base and MedCareData are downloaded by the user. Differences from base.py: the global batch is
cut into microbatches that fit.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The run."""
    config = base.get_config()
    config.data.accumulation = 8
    return config
