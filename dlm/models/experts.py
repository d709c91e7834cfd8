"""Mixture of experts: the routers, the packed experts, and the MLP made of both.

Shapes: N tokens, D model width, F expert width, E experts, K experts of a token.
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
    """The K most probable experts of a token (Shazeer et al. 2017, arXiv:1701.06538).

    p = softmax(W x), the softmax in float32. The weights are p of the chosen, divided by their
    sum if `norm_topk_prob`, in the dtype of the token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.normalised = bool(config.norm_topk_prob)
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts, int64 [N, K], and their weights [N, K], of tokens [N, D]."""
        probability = by.linear(x, self.weight).softmax(-1, dtype=torch.float32)
        weights, experts = probability.topk(self.chosen, -1)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights.to(x.dtype)


class GroupedSigmoidRouter(WideBuffers):
    """Sigmoid scores, limited to the best groups (DeepSeek-V3 2024, arXiv:2412.19437).

    s = sigmoid(W x) and r = s + bias. The score of a group of experts is the sum of its two largest
    r. Chosen are the K largest r within the best groups; their weights are
    `routed_scaling_factor` s / (sum of the chosen s + 1e-20): the bias selects and weighs nothing.
    All in float32, whatever the dtype of the network; so are the weights.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.expert_bias = nn.Buffer(torch.zeros(config.num_experts, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts, int64 [N, K], and their weights, float32 [N, K], of tokens [N, D]."""
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
    """Places of tokens' choices [N, K], expert after expert, int64 [N K], and how many each has.

    On a CPU nothing waits for these numbers. A last one is of what is no expert of `count`.
    """
    chosen = experts.flatten()
    return chosen.argsort(stable=True), chosen.bincount(minlength=count).tolist()


@use_experts_implementation
class ChosenExperts(nn.Module):
    """`Experts` as transformers puts its functions in the place of their `forward`.

    `config._experts_implementation` chooses: `grouped_mm`, the default of transformers,
    `batched_mm`, or `eager`, which is the `forward` below. All add up a token's experts in the
    dtype of the weights or wider, and cast the sum to that of the token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k expert_k(x) [N, D] of tokens [N, D], both [N, K]."""
        return self.one_by_one(x, experts, weights)

    def one_by_one(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """The same, expert after expert."""
        out = torch.zeros_like(x, dtype=weights.dtype)
        order, counts = by_expert(experts, self.num_experts)
        tokens = (order // experts.shape[1]).split(counts)
        shares = weights.flatten()[order, None].split(counts)
        # Behind them all: expert parallelism has the tokens of experts of another device there.
        for expert, token, share in zip(range(self.num_experts), tokens, shares, strict=False):
            if len(token):
                inner = self.opened(x[token], self.gate_up_proj[expert])
                result = by.linear(inner, self.down_proj[expert])
                out.index_add_(0, token, (result * share).to(out.dtype))
        return out.to(x.dtype)

    def opened(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """silu(W x) (V x) [N, F] of tokens [N, D], and W and V on each other, [2 F, D]."""
        if by.covers(x, gate_up) and type(self.act_fn) is SILU:
            return by.gated(x, *gate_up.chunk(2))
        gate, up = F.linear(x, gate_up).chunk(2, -1)
        return torch.as_tensor(self.act_fn(gate) * up)

    def covers(self, x: Tensor) -> bool:
        """Whether `one_by_one` is what tokens [N, D] are best multiplied by: in float32 on a CPU.

        It is faster there, and a token has the same bits in every batch; in half precision, where
        it has them as it is, `grouped_mm` is (`docs/benchmarks/2026-11-30-cpu.md`).
        """
        covered = x.dtype == torch.float32 and by.covers(x, self.gate_up_proj, self.down_proj)
        return covered and untouched(self)


class Experts(ChosenExperts):
    """E SwiGLU networks in two tensors, so that one grouped product serves all tokens.

    Where `covers` holds, `SparseMlp` asks for `one_by_one` whatever was chosen.
    """

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """As chosen, but for float64, which torch's grouped products do not take."""
        if x.dtype == torch.float64:
            return self.one_by_one(x, experts, weights)
        return super().forward(x, experts, weights)


class SparseMlp(nn.Module):
    """The MLP of a layer with experts: those the router chooses, and the shared ones.

    Reads of the configuration: `hidden_size`, `hidden_act`, `scoring` ("softmax" or "sigmoid"),
    `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`, `num_shared_experts`; for
    softmax `norm_topk_prob`; for sigmoid `n_group`, `topk_group`, `routed_scaling_factor`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate = ROUTERS[config.scoring](config)
        self.experts = Experts(config)
        shared, inner = config.num_shared_experts, config.moe_intermediate_size
        every = Mlp(config.hidden_size, shared * inner, config.hidden_act) if shared else None
        self.shared_experts = every  # one network that every token passes, as wide as all of them

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        tokens = x.flatten(0, -2)
        own = type(self.experts) is Experts and self.experts.covers(tokens)
        out = (self.experts.one_by_one if own else self.experts)(tokens, *self.gate(tokens))
        if self.shared_experts is not None:
            out = out + self.shared_experts(tokens)
        return torch.as_tensor(out.view_as(x))


def initialise(module: nn.Module, deviation: float) -> None:
    """Normal weights and zero biases, for the modules above that hold their own."""
    if isinstance(module, Experts | SoftmaxRouter | GroupedSigmoidRouter):
        for weight in module.parameters(recurse=False):
            initialization.normal_(weight, std=deviation)
        for bias in module.buffers(recurse=False):
            initialization.zeros_(bias)
