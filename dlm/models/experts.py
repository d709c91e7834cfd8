"""Mixture of experts: the routers, the stacked experts, and the MLP that combines them.

Shapes: N tokens, D model width, F expert width, E experts, K experts per token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.utils.generic import maybe_autocast

from dlm.kernels import linear as by
from dlm.models.buffers import WideBuffers
from dlm.models.linear import SILU, Mlp
from dlm.models.model import untouched


class SoftmaxRouter(nn.Module):
    """Routes a token to its K most probable experts (Shazeer et al. 2017, arXiv:1701.06538).

    p = softmax(W x), with the softmax in float32. The weights are p of the chosen experts, divided
    by their sum if `norm_topk_prob`, in the dtype of the token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.normalised = bool(config.norm_topk_prob)
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of tokens [N, D], int64 [N, K], and their weights [N, K]."""
        probability = by.linear(x, self.weight).softmax(-1, dtype=torch.float32)
        weights, experts = probability.topk(self.chosen, -1)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights.to(x.dtype)


class GroupedSigmoidRouter(WideBuffers):
    """Routes by sigmoid scores within the best groups (DeepSeek-V3 2024, arXiv:2412.19437).

    s = sigmoid(W x) and r = s + bias. The score of a group of experts is the sum of its two largest
    r. The K largest r within the best groups are chosen. Their weights are
    `routed_scaling_factor` s / (sum of the chosen s + 1e-20), so the bias affects only the choice.
    Everything, including the weights, is in float32, whatever the dtype of the network.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.expert_bias = nn.Buffer(torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of tokens [N, D], int64 [N, K], and their weights, float32 [N, K]."""
        with maybe_autocast(x.device.type, enabled=False):
            score = by.linear(x.float(), self.weight.float(), activation="sigmoid")
        ranked = (score + self.expert_bias).unflatten(-1, (self.groups, -1))
        group_score = ranked.topk(2, -1).values.sum(-1)
        kept = torch.zeros_like(group_score, dtype=torch.bool)
        kept = kept.scatter(-1, group_score.topk(self.kept_groups, -1).indices, True)
        ranked = ranked.masked_fill(~kept[..., None], -torch.inf)
        experts = ranked.flatten(-2).topk(self.chosen, -1).indices
        weights = score.gather(-1, experts)
        if self.chosen > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return experts, weights * self.scale


ROUTERS = {"softmax": SoftmaxRouter, "sigmoid": GroupedSigmoidRouter}
"""Router by the configuration's `scoring`."""


def by_expert(experts: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Sort the choices of tokens by expert.

    Args:
        experts: int64 [N, K].
        count: number of experts; an id at or above it belongs to no expert here.

    Returns:
        The flat indices of the choices in order of expert, int64 [N K], and the number of choices
        of each expert, followed by that of an id that belongs to no expert here. Reading these
        numbers waits for nothing on a CPU.
    """
    chosen = experts.flatten()
    return chosen.argsort(stable=True), chosen.bincount(minlength=count).tolist()


@use_experts_implementation
class ChosenExperts(nn.Module):
    """The base of `Experts`, whose `forward` transformers replaces by the chosen implementation.

    `config._experts_implementation` chooses it: `grouped_mm`, the default of transformers,
    `batched_mm`, or `eager`, which is the `forward` below. Each adds up a token's experts in the
    dtype of the weights or wider, and casts the sum to the dtype of the token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k expert_k(x), [N, D], of tokens [N, D] with experts and weights [N, K]."""
        return self.one_by_one(x, experts, weights)

    def one_by_one(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The same, one expert after the other."""
        out = torch.zeros_like(x, dtype=weights.dtype)
        order, counts = by_expert(experts, self.num_experts)
        tokens = (order // experts.shape[1]).split(counts)
        shares = weights.flatten()[order, None].split(counts)
        # Counts may go on past the last expert: with expert parallelism, tokens of experts on
        # another device are sorted there.
        for expert, token, share in zip(range(self.num_experts), tokens, shares, strict=False):
            if len(token):
                inner = self.opened(x[token], self.gate_up_proj[expert])
                result = by.linear(inner, self.down_proj[expert])
                out.index_add_(0, token, (result * share).to(out.dtype))
        return out.to(x.dtype)

    def opened(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """silu(W x) (V x), [N, F], of tokens [N, D]; `gate_up` is W stacked on V, [2 F, D]."""
        if by.covers(x, gate_up) and type(self.act_fn) is SILU:
            return by.gated(x, *gate_up.chunk(2))
        gate, up = F.linear(x, gate_up).chunk(2, -1)
        return torch.as_tensor(self.act_fn(gate) * up)

    def covers(self, x: Tensor) -> bool:
        """Whether tokens [N, D] should use `one_by_one`: in float32 on a CPU.

        It is faster there, and gives a token the same bits in every batch. In half precision
        `grouped_mm` is better and has that property, too (`docs/benchmarks/2026-11-30-cpu.md`).
        """
        covered = x.dtype == torch.float32 and by.covers(x, self.gate_up_proj, self.down_proj)
        return covered and untouched(self)


class Experts(ChosenExperts):
    """E SwiGLU networks stacked in two tensors, so that one grouped product serves all tokens.

    Where `covers` holds, `SparseMlp` calls `one_by_one`, whatever implementation was chosen.
    """

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The chosen implementation; for float64, which grouped products lack, one by one."""
        if x.dtype == torch.float64:
            return self.one_by_one(x, experts, weights)
        return super().forward(x, experts, weights)


class SparseMlp(nn.Module):
    """The MLP of a mixture-of-experts layer: the routed experts plus the shared ones.

    It reads these fields of the configuration: `hidden_size`, `hidden_act`, `scoring` ("softmax" or
    "sigmoid"), `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `num_shared_experts`;
    for softmax `norm_topk_prob`; for sigmoid `n_group`, `topk_group`, `routed_scaling_factor`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate = ROUTERS[config.scoring](config)
        self.experts = Experts(config)
        shared, inner = config.num_shared_experts, config.moe_intermediate_size
        every = Mlp(config.hidden_size, shared * inner, config.hidden_act) if shared else None
        self.shared_experts = every  # one network for all tokens, as wide as all shared experts

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        tokens = x.flatten(0, -2)
        own = type(self.experts) is Experts and self.experts.covers(tokens)
        out = (self.experts.one_by_one if own else self.experts)(tokens, *self.gate(tokens))
        if self.shared_experts is not None:
            out = out + self.shared_experts(tokens)
        return torch.as_tensor(out.view_as(x))


def initialise(module: nn.Module, deviation: float) -> None:
    """Initialise experts and routers with normal weights and zero biases.

    Args:
        module: any module; others than experts and routers are left alone.
        deviation: standard deviation of the weights.
    """
    if isinstance(module, Experts | SoftmaxRouter | GroupedSigmoidRouter):
        for weight in module.parameters(recurse=False):
            initialization.normal_(weight, std=deviation)
        for bias in module.buffers(recurse=False):
            initialization.zeros_(bias)
