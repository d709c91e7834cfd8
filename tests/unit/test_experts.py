"""Routers and experts against their rules, written a second time token by token in float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlm.models.experts import Experts, SparseMlp

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
FAMILIES: dict[str, dict[str, Any]] = {
    "llada_moe": {"scoring": "softmax", "norm_topk_prob": None, "num_shared_experts": 0},
    "rnd1": {"scoring": "softmax", "norm_topk_prob": True, "num_shared_experts": 0},
    "llada2": {"scoring": "sigmoid", "num_shared_experts": 1},
    "llada2_two_shared": {"scoring": "sigmoid", "num_shared_experts": 2},
    "llada2_top_1": {"scoring": "sigmoid", "num_shared_experts": 1, "num_experts_per_tok": 1},
}


def settings(family: str, **changes: Any) -> Any:
    """What `SparseMlp` reads of a configuration, at a small size."""
    common = {
        "hidden_size": 32,
        "hidden_act": "silu",
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 24,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "_experts_implementation": "eager",
    }
    return SimpleNamespace(**common | FAMILIES[family] | changes)


def build(config: Any, seed: int = 0) -> SparseMlp:
    """An MLP with random weights, in float32."""
    generator = torch.Generator().manual_seed(seed)
    mlp = SparseMlp(config)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * 1.5 / weight.shape[-1] ** 0.5
            )
        for bias in mlp.buffers():
            bias.copy_(0.3 * torch.randn(bias.shape, generator=generator))
    return mlp.requires_grad_(False)


def tokens(count: int, width: int = 32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(7))


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return down @ ((gate @ x) / (1 + torch.exp(-(gate @ x))) * (up @ x))


def softmax_route(weight: Tensor, config: Any, x: Tensor, mutant: str) -> dict[int, float]:
    """Weight of each chosen expert."""
    logits = (weight @ x).tolist()
    powers = [2.718281828459045 ** (v - max(logits)) for v in logits]
    order = sorted(range(len(powers)), key=lambda e: -powers[e])[: config.num_experts_per_tok]
    normalised = bool(config.norm_topk_prob) != (mutant == "renormalisation")
    total = sum(powers[e] for e in order) if normalised else sum(powers)
    return {e: powers[e] / total for e in order}


def sigmoid_route(
    weight: Tensor, bias: Tensor, config: Any, x: Tensor, mutant: str
) -> dict[int, float]:
    """Weight of each chosen expert."""
    score = [1 / (1 + 2.718281828459045**-v) for v in (weight @ x).tolist()]
    ranked = [s + b for s, b in zip(score, bias.tolist(), strict=True)]
    if mutant == "no bias":
        ranked = score
    size = config.num_experts // config.n_group
    groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
    top = 1 if mutant == "group score of one" else 2
    groups.sort(key=lambda g: -sum(sorted((ranked[e] for e in g), reverse=True)[:top]))
    kept = config.n_group if mutant == "no group limit" else config.topk_group
    allowed = [e for g in groups[:kept] for e in g]
    order = sorted(allowed, key=lambda e: -ranked[e])[: config.num_experts_per_tok]
    base = ranked if mutant == "bias in weights" else score
    many = len(order) > 1 and mutant != "no renormalisation"
    total = sum(base[e] for e in order) if many else 1.0
    scale = 1.0 if mutant == "no scaling" else config.routed_scaling_factor
    return {e: scale * base[e] / total for e in order}


def routes(mlp: SparseMlp, config: Any, x: Tensor, mutant: str = "") -> list[dict[int, float]]:
    """Weight of each chosen expert of each token; `mutant` names a mistake to make."""
    gate: Any = mlp.gate
    weight = gate.weight.double()
    if config.scoring == "softmax":
        return [softmax_route(weight, config, token, mutant) for token in x.double()]
    bias = gate.expert_bias.double()
    return [sigmoid_route(weight, bias, config, token, mutant) for token in x.double()]


def apply(mlp: SparseMlp, config: Any, x: Tensor, route: list[dict[int, float]]) -> Tensor:
    """The experts' weighted sum and the shared ones in float64, of tokens [N, D]."""
    weights = {name: value.double() for name, value in mlp.state_dict().items()}
    rows = []
    for token, shares in zip(x.double(), route, strict=True):
        row = torch.zeros_like(token)
        for expert, share in shares.items():
            gate, up = weights["experts.gate_up_proj"][expert].chunk(2)
            row += share * swiglu(token, gate, up, weights["experts.down_proj"][expert])
        if config.num_shared_experts:
            names = (f"shared_experts.{name}_proj.weight" for name in ("gate", "up", "down"))
            row += swiglu(token, *(weights[name] for name in names))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_follows_its_rule(family: str, implementation: str) -> None:
    config = settings(family, _experts_implementation=implementation)
    mlp, x = build(config), tokens(40)
    found = mlp(x.view(5, 8, -1))
    assert found.dtype == torch.float32
    assert found.shape == (5, 8, 32)
    torch.testing.assert_close(
        found.flatten(0, 1).double(),
        apply(mlp, config, x, routes(mlp, config, x)),
        atol=2e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("family", "mutant"),
    [
        ("llada_moe", "renormalisation"),
        ("rnd1", "renormalisation"),
        *(
            ("llada2", mutant)
            for mutant in (
                "no scaling",
                "no bias",
                "no group limit",
                "group score of one",
                "bias in weights",
                "no renormalisation",
            )
        ),
    ],
)
def test_the_tokens_above_tell_each_mistake(family: str, mutant: str) -> None:
    config = settings(family)
    mlp, x = build(config), tokens(40)
    right = apply(mlp, config, x, routes(mlp, config, x))
    wrong = apply(mlp, config, x, routes(mlp, config, x, mutant))
    assert (right - wrong).abs().max() > 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["llada_moe", "rnd1", "llada2"])
def test_a_token_does_not_depend_on_the_others(family: str, implementation: str) -> None:
    mlp, x = build(settings(family, _experts_implementation=implementation)), tokens(40)
    alone = torch.cat([mlp(token[None]) for token in x])
    torch.testing.assert_close(mlp(x), alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_batched_experts_give_a_token_the_same_bits_alone(dtype: torch.dtype) -> None:
    config = settings("llada2", _experts_implementation="batched_mm")
    mlp, x = build(config).to(dtype), tokens(40).to(dtype)
    experts, weights = mlp.gate(x)
    among = mlp.experts(x, experts, weights)
    for row in range(len(x)):
        one = slice(row, row + 1)
        alone = mlp.experts(x[one], experts[one], weights[one])
        assert torch.equal(among[one], alone), row


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["llada_moe", "rnd1", "llada2"])
def test_half_precision_is_close(family: str, implementation: str) -> None:
    config = settings(family, _experts_implementation=implementation)
    mlp = build(config).to(torch.bfloat16)
    x = tokens(40).to(torch.bfloat16)
    chosen, shares = (value.tolist() for value in mlp.gate(x))
    route = [dict(zip(*row, strict=True)) for row in zip(chosen, shares, strict=True)]
    expected, found = apply(mlp, config, x, route), mlp(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.double(), expected, atol=0.03 * float(expected.abs().max()), rtol=0
    )


def test_the_sigmoid_router_stays_in_float32() -> None:
    config = settings("llada2")
    gate = build(config).gate.to(torch.bfloat16)
    gate.expert_bias.data = 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    x = tokens(40).to(torch.bfloat16)
    wide = build(config).gate
    wide.weight.data, wide.expert_bias.data = gate.weight.float(), gate.expert_bias
    experts, weights = gate(x)
    with torch.autocast("cpu", torch.bfloat16):
        same_experts, same_weights = gate(x)
    assert weights.dtype == same_weights.dtype == torch.float32
    for found in ((experts, weights), (same_experts, same_weights)):
        assert torch.equal(found[0], wide(x.float())[0])
        assert torch.equal(found[1], wide(x.float())[1])


def test_the_softmax_router_weighs_in_the_dtype_of_the_token() -> None:
    gate: Any = build(settings("rnd1")).gate.to(torch.bfloat16)
    x = tokens(40).to(torch.bfloat16)
    experts, weights = gate(x)
    probability = F.linear(x, gate.weight).float().softmax(-1)
    top = probability.topk(4, -1)
    assert weights.dtype == torch.bfloat16
    assert torch.equal(experts, top.indices)
    assert torch.equal(weights, (top.values / top.values.sum(-1, keepdim=True)).bfloat16())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32_weights_add_up_in_float32(implementation: str) -> None:
    """256 is followed by 258 in bfloat16: adding the ones one by one there would lose them."""
    config = settings("llada2", num_experts_per_tok=3, _experts_implementation=implementation)
    experts = Experts(config)
    nn.init.zeros_(experts.gate_up_proj)
    nn.init.zeros_(experts.down_proj)
    with torch.no_grad():
        experts.gate_up_proj[:, 0, 0] = 32.0  # silu(32) = 32
        experts.gate_up_proj[:, 24, 0] = 1 / 32
        experts.down_proj[:, 0, 0] = torch.tensor([256.0, 1.0, 1.0] + 13 * [0.0])
    experts.to(torch.bfloat16).requires_grad_(False)
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0] = 1.0
    out = experts(x, torch.tensor([[0, 1, 2]]), torch.ones(1, 3))
    assert out.dtype == torch.bfloat16
    assert out[0, 0] == 258.0


def test_experts_of_another_device_add_nothing() -> None:
    experts = build(settings("llada2")).experts
    x = tokens(3)
    here = torch.tensor([[0, 5], [2, 3], [5, 0]])
    weights = torch.tensor([[0.3, 0.7], [0.4, 0.6], [0.1, 0.9]])
    elsewhere = here.masked_fill(here == 5, 16)
    found = experts(x, elsewhere, weights)
    expected = experts(x, here, weights.masked_fill(here == 5, 0.0))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["llada_moe", "llada2"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_reach_every_weight(family: str, implementation: str) -> None:
    mlp = build(settings(family, _experts_implementation=implementation)).requires_grad_(True)
    for bias in mlp.buffers():
        bias.zero_()  # else it keeps an expert from being chosen at all
    mlp(tokens(200)).square().sum().backward()
    for name, weight in mlp.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.flatten(1).norm(dim=1).all(), name
