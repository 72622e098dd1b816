"""The scores of the paper's Table 1, beside which our own are laid.

Source: Liao et al., `MedCare: Advancing Medical LLMs through Decoupling Clinical Alignment and
Knowledge Aggregation <https://arxiv.org/abs/2406.17484>`_, EMNLP 2024 Findings, Table 1: accuracy
in per cent. "w/o DA" is a model after MKA.
"""

SOURCE = "Liao et al., EMNLP 2024 Findings (arXiv:2406.17484), Table 1"

COLUMNS: dict[str, str] = {
    "medqa_mainland": "MedQA",
    "mmedbench_zh": "MMB",
    "cmb": "CMB",
    "cmexam": "CMExam",
    "cmmlu_med": "CMMLU",
    "ceval_med": "CEval",
    "ple_pharmacy": "PLE Pha",
    "ple_tcm": "PLE TCM",
}
"""Column title by the name of the task."""

AVERAGE = "Avg"

ROWS: dict[str, tuple[float, ...]] = {
    "Qwen1.5-7B": (74.46, 78.58, 61.33, 58.24, 66.77, 68.29, 32.29, 29.17, 58.64),
    "MedCare-1.8B": (56.80, 65.62, 43.04, 47.83, 48.82, 51.22, 38.13, 35.21, 48.33),
    "MedCare-1.8B w/o DA": (61.70, 64.62, 49.28, 52.21, 51.18, 60.98, 36.04, 39.58, 51.95),
    "MedCare-7B": (76.77, 80.79, 60.13, 65.33, 64.33, 65.85, 47.29, 52.08, 64.07),
    "MedCare-7B w/o DA": (75.16, 79.36, 61.60, 66.85, 66.25, 70.73, 50.83, 53.33, 65.51),
    "MedCare-14B": (81.44, 84.76, 64.17, 68.74, 71.57, 78.05, 54.17, 54.58, 69.69),
    "MedCare-14B w/o DA": (77.41, 83.36, 66.79, 71.77, 69.42, 82.93, 57.29, 54.17, 70.39),
}
"""Published accuracies in per cent by model, in the order of `COLUMNS`, then their average."""
