"""The ablation in minutes on two cores: a random decoder learns made-up facts, then forgets them.

    python tools/ablate.py --config=configs/ablation_tiny.py --workdir=runs/ablation_tiny

Every part of the study at its smallest; docs/orthogonality.md has what came out. The rates are high
on purpose: what does not forget without a constraint cannot say what one buys.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The study."""
    study = ml_collections.ConfigDict()
    study.run = _run()
    study.seeds = (0, 1, 2, 3, 4)
    study.facts = {"facts": 48, "notes": 48, "aligned": 96, "test": 48}
    study.baseline = "none"
    study.cells = cells()
    return study.lock()


def cells() -> tuple[dict[str, object], ...]:
    """The ways of doing DA."""
    return (
        {"name": "none", "constraint": {"kind": "none"}},
        *(
            {"name": f"penalty {w:g}", "constraint": {"kind": "penalty", "penalty_weight": w}}
            for w in (0.01, 0.1, 1.0)
        ),
        {"name": "projection span"},
        {"name": "projection svd", "constraint": {"basis": "svd"}},
        *(
            {
                "name": f"projection activation {energy:g}",
                "constraint": {"basis": "activation", "energy": energy},
            }
            for energy in (0.5, 0.8, 0.95)
        ),
        {"name": "projection span, both sides", "constraint": {"side": "both"}},
        {
            "name": "none, knowledge learns",
            "constraint": {"kind": "none", "freeze_knowledge": False},
        },
        {
            "name": "penalty 1, knowledge learns",
            "constraint": {"kind": "penalty", "freeze_knowledge": False},
        },
        {"name": "projection span, noise kept", "method": "keep_noise"},
        {"name": "one LoRA", "method": "one_lora", "adapters": {"shared_experts": 4}},
    )


def _run() -> ml_collections.ConfigDict:
    """What all cells share."""
    config = base.get_config()
    config.constraint.basis, config.constraint.energy = "span", 0.95  # if a cell says no other
    config.base.path = "random"
    with config.unlocked():
        config.base.random = {
            "model_type": "llama",
            "vocab_size": 272,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
        }
    config.base.dtype = "float32"
    config.compute.dtype = "float32"
    config.compute.adapter_dtype = "float32"
    config.compute.remat = "none"
    config.adapters.rank = 8
    config.adapters.alpha = 16.0
    config.adapters.experts = 4
    config.adapters.dropout = 0.0
    config.data.row_length = 128
    config.data.rows = 8
    config.data.check_overlap = False  # what was taught is asked as it was taught
    config.mka.epochs = 60
    config.mka.learning_rate = 2e-3
    config.da.epochs = 12
    config.da.learning_rate = 1e-2
    config.checkpoint.every_steps = 1000
    config.evaluation.batch = 48
    config.evaluation.max_new_tokens = 14
    return config
