"""The ablation on medical data of your own in MedCareData's layout: exam questions, then entities.

    python tools/ablate.py --config=configs/ablation_medcaredata.py --workdir=runs/medcaredata \
        --config.drawn.folder=FOLDER

SmolLM2-135M is taught MedMCQA questions with their explanations and learns to name the entities of
NCBI Disease and BC5CDR. The seed draws what is taught and asked. All else as
ablation_smollm2.py:follow_up.
"""

import ml_collections

from configs import ablation_smollm2


def get_config() -> ml_collections.ConfigDict:
    """The study."""
    study = ablation_smollm2.get_config("follow_up")
    with study.unlocked():
        study.drawn = {
            "folder": "",  # with 1-stage/train.json, 2-stage/train.json and test
            "exam": "medmcqa",
            "exam_ids": ("ki-medmcqa-",),
            "written": "ner",
            "written_ids": ("ar-bc5cdr-", "ar-ncbi-disease-"),
            "taught": 72,
            "mixed": 12,
            "aligned": 48,
            "test": 40,
            "longest": 600,  # characters, so that a dialogue fits a row
        }
    study.cells = (*study.cells, {"name": "projection span"})
    study.run.icd10.make = False
    study.run.data.check_overlap = False  # what was taught is asked
    study.run.evaluation.tasks = ("medmcqa", "ner")
    return study
