"""The PyTorch contenders: transformers' model, PEFT's attention LoRA, and a form of the FFN's.

Imports nothing that imports jax: what is resident in these processes is theirs alone.
"""

from typing import Any

import peft
import torch
import transformers
from torch import nn

from medcare_jax.benchmarks.job import Contender, Job
from medcare_jax.benchmarks.torch_adapters import ExpertStack, RankSpace
from medcare_jax.benchmarks.weights import draw, draw_tokens

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FFN = ("gate_proj", "up_proj", "down_proj")


def build_expert_stack(job: Job) -> Contender:
    """Attention LoRA by PEFT, and in the FFN the published formulation of MoLoRA."""
    return _build(job, _with_mixture(job, ExpertStack))


def build_rank_space(job: Job) -> Contender:
    """Attention LoRA by PEFT, and in the FFN the rank-space form."""
    return _build(job, _with_mixture(job, RankSpace))


def build_plain_lora(job: Job) -> Contender:
    """PEFT's LoRA on all seven projections: what one uses who does not use MedCare."""
    return _build(job, _with_lora(job, make_model(job), (*_ATTENTION, *_FFN)))


def _with_mixture(job: Job, kind: type[ExpertStack] | type[RankSpace]) -> nn.Module:
    """A model whose FFN projections are of the given kind and whose attention has LoRA."""
    model = make_model(job)
    for layer, block in enumerate(model.model.layers):
        for name in _FFN:
            projection = kind(getattr(block.mlp, name), job.config["adapters"], job.scale)
            width = projection.base.in_features, projection.base.out_features
            path = f"model/layers/mlp/{name}"
            knowledge = _draw_pair(job, f"{path}/knowledge", layer, *width, parts="shared_experts")
            noise = _draw_pair(job, f"{path}/noise", layer, *width, parts="experts")
            experts = job.config["adapters"]["experts"]
            for leaf, shape in {"kernel": (width[0], experts), "bias": (experts,)}.items():
                noise[f"router_{leaf}"] = _draw(job, f"{path}/noise/router_{leaf}", layer, shape)
            projection.load(knowledge, noise)
            setattr(block.mlp, name, projection)
    learns = [p for m in model.modules() if isinstance(m, kind) for p in m.parameters()]
    model = _with_lora(job, model, _ATTENTION)
    for parameter in learns:  # PEFT freezes all that is not its own
        parameter.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, kind):
            module.base.requires_grad_(False)
    return model


def _with_lora(job: Job, model: nn.Module, targets: tuple[str, ...]) -> nn.Module:
    """The model with PEFT's LoRA, in the base's dtype as in the reference's runs."""
    sizes = job.config["adapters"]
    config = peft.LoraConfig(
        r=sizes["rank"],
        lora_alpha=job.scale * sizes["rank"],
        target_modules=rf".*\.({'|'.join(targets)})",
        lora_dropout=0.0,
    )
    wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for layer, block in enumerate(model.model.layers):
        for name in targets:
            part = "self_attn" if name in _ATTENTION else "mlp"
            module = getattr(getattr(block, part), name)
            path = f"model/layers/{part}/{name}/knowledge"
            pair = _draw_pair(job, path, layer, module.in_features, module.out_features, parts=None)
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(pair["lora_a"].T)
                module.lora_B["default"].weight.copy_(pair["lora_b"].T)
    return wrapped


def make_model(job: Job) -> Any:
    """The bare model with the base's weights, frozen."""
    base = job.config["base"]
    settings = transformers.AutoConfig.for_model(**base["random"])
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(
            settings, dtype=getattr(torch, base["dtype"]), attn_implementation="sdpa"
        )
    model.config.use_cache = False
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        path, layer, is_transposed = _place(name, parameter)
        shape = tuple(parameter.shape)[:: -1 if is_transposed else 1]
        values = _draw(job, path, layer, shape)
        parameter.copy_(values.T if is_transposed else values)
    return model


def _place(name: str, parameter: torch.Tensor) -> tuple[str, int, bool]:
    """Path of our leaf, layer, and whether the layout is the transposed, of a parameter's name.

    >>> _place("model.layers.3.mlp.up_proj.weight", torch.zeros(2, 2))
    ('model/layers/mlp/up_proj/kernel', 3, True)
    """
    *owner, kind = name.split(".")
    layer = int(owner.pop(2)) if owner[:2] == ["model", "layers"] else 0
    if kind == "weight":
        kind = "embedding" if owner[-1] == "embed_tokens" else "kernel"
        kind = "scale" if parameter.ndim == 1 else kind
    return "/".join([*owner, kind]), layer, kind == "kernel"


def _draw(job: Job, path: str, layer: int, shape: tuple[int, ...]) -> torch.Tensor:
    """One layer of a leaf of ours."""
    return torch.from_numpy(draw(job.config["seed"], path, layer, shape))


def _draw_pair(
    job: Job, path: str, layer: int, width_in: int, width_out: int, *, parts: str | None
) -> dict[str, torch.Tensor]:
    """`lora_a` and `lora_b` of an adapter of as many parts of rank r as a setting says."""
    sizes = job.config["adapters"]
    rank = sizes["rank"] * (sizes[parts] if parts else 1)
    return {
        "lora_a": _draw(job, f"{path}/lora_a", layer, (width_in, rank)),
        "lora_b": _draw(job, f"{path}/lora_b", layer, (rank, width_out)),
    }


def _build(job: Job, model: Any) -> Contender:
    """The step: gradients of all microbatches, clipping, fused AdamW."""
    if job.config["compute"]["remat"] != "none":
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stage, data = job.config["mka"], job.config["data"]
    optimizer = torch.optim.AdamW(
        learns,
        betas=(stage["adam_b1"], stage["adam_b2"]),
        weight_decay=stage["weight_decay"],
        fused=True,
    )
    vocab_size = job.config["base"]["random"]["vocab_size"]
    tokens = torch.from_numpy(draw_tokens(job.config["seed"], job.batch_shape, vocab_size)).long()
    parts = tokens.to(model.device).chunk(data["accumulation"])
    rates = iter(job.rates)

    def advance() -> float:
        optimizer.param_groups[0]["lr"] = next(rates)
        total = 0.0
        for part in parts:
            loss = model(input_ids=part, labels=part).loss / len(parts)
            loss.backward()
            total += float(loss.detach())
        if stage["clip_norm"] > 0:
            nn.utils.clip_grad_norm_(learns, stage["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return total

    return Contender(advance, _device(), _peak_device_bytes, sum(p.numel() for p in learns))


def _device() -> str:
    """What the model is on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _peak_device_bytes() -> int | None:
    """The most that PyTorch allocated on the accelerator."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
