"""Two forms of an FFN projection with knowledge and routed experts in PyTorch, equal in numbers.

Written for comparison: the published formulation, and the rank-space one without its waste.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Leaves = Mapping[str, torch.Tensor]


class ExpertStack(nn.Module):
    """Every expert's whole output [tokens, e, out], of which the router then picks.

    Source: the formulation of the authors' PyTorch code for Liao et al. 2024; adapters float32,
    x cast up, the delta cast down.
    """

    def __init__(self, base: nn.Linear, sizes: Mapping[str, Any], scale: float) -> None:
        super().__init__()
        wide = {"device": base.weight.device, "dtype": torch.float32}
        pair = lambda rank: nn.Sequential(
            nn.Linear(base.in_features, rank, bias=False, **wide),
            nn.Linear(rank, base.out_features, bias=False, **wide),
        )
        self.base, self.scale, self.chosen = base, scale, sizes["experts_per_token"]
        self.router = nn.Linear(base.in_features, sizes["experts"], **wide)
        self.shared = pair(sizes["rank"] * sizes["shared_experts"])
        self.experts = nn.ModuleList(pair(sizes["rank"]) for _ in range(sizes["experts"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base output plus delta, in x's dtype."""
        flat = x.reshape(-1, x.shape[-1]).to(self.router.weight.dtype)
        stack = torch.stack([expert(flat) * self.scale for expert in self.experts], dim=1)
        gates, chosen = torch.topk(self.router(flat).softmax(-1), self.chosen)
        gates = gates / gates.sum(-1, keepdim=True)
        picked = stack.gather(1, chosen.unsqueeze(-1).expand(-1, -1, stack.shape[-1]))
        picked = torch.cat([picked, (self.shared(flat) * self.scale).unsqueeze(1)], dim=1)
        gates = torch.cat([gates, torch.ones_like(gates[:, :1])], dim=-1)
        delta = torch.einsum("be,bef->bf", gates, picked)
        return self.base(x) + delta.reshape(*x.shape[:-1], -1).to(x.dtype)

    @torch.no_grad()
    def load(self, knowledge: Leaves, noise: Leaves) -> None:
        """Copies our leaves, [in, r] and [r, out], into the modules."""
        rank = self.experts[0][0].out_features
        self.router.weight.copy_(noise["router_kernel"].T)
        self.router.bias.copy_(noise["router_bias"])
        self.shared[0].weight.copy_(knowledge["lora_a"].T)
        self.shared[1].weight.copy_(knowledge["lora_b"].T)
        for number, expert in enumerate(self.experts):
            columns = slice(number * rank, (number + 1) * rank)
            expert[0].weight.copy_(noise["lora_a"][:, columns].T)
            expert[1].weight.copy_(noise["lora_b"][columns].T)


class RankSpace(nn.Module):
    """One pair of matmuls for knowledge and all experts, gated in the rank space.

    Parameters are float32 and cast to x's dtype; only the router works in float32.
    """

    def __init__(self, base: nn.Linear, sizes: Mapping[str, Any], scale: float) -> None:
        super().__init__()
        wide = {"device": base.weight.device, "dtype": torch.float32}
        self.base, self.scale, self.chosen = base, scale, sizes["experts_per_token"]
        self.rank, self.shared = sizes["rank"], sizes["rank"] * sizes["shared_experts"]
        total = self.shared + self.rank * sizes["experts"]
        self.router = nn.Linear(base.in_features, sizes["experts"], **wide)
        self.lora_a = nn.Parameter(torch.zeros(total, base.in_features, **wide))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, total, **wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Base output plus delta, in x's dtype."""
        shares = self.router(x.to(self.router.weight.dtype)).softmax(-1)
        best, chosen = torch.topk(shares, self.chosen)
        best = best / best.sum(-1, keepdim=True) * self.scale
        gates = torch.zeros_like(shares).scatter(-1, chosen, best)
        gates = gates.repeat_interleave(self.rank, dim=-1)
        gates = F.pad(gates, (self.shared, 0), value=self.scale).to(x.dtype)
        ranks = F.linear(x, self.lora_a.to(x.dtype)) * gates
        return self.base(x) + F.linear(ranks, self.lora_b.to(x.dtype))

    @torch.no_grad()
    def load(self, knowledge: Leaves, noise: Leaves) -> None:
        """Copies our leaves, [in, r] and [r, out], into the parameters."""
        self.router.weight.copy_(noise["router_kernel"].T)
        self.router.bias.copy_(noise["router_bias"])
        self.lora_a.copy_(torch.cat([knowledge["lora_a"], noise["lora_a"]], dim=1).T)
        self.lora_b.copy_(torch.cat([knowledge["lora_b"], noise["lora_b"]], dim=0).T)
