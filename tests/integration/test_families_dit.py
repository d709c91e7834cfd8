"""MDLM and BD3LM: released layout, official logits, and what the engine puts on top of them."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import dlm
from dlm.models.model import Model

GOLDEN = Path(__file__).parent.parent / "golden" / "families"
FAMILIES = ("mdlm", "bd3lm")
MASKS = {"mdlm": 305, "bd3lm": 313}
HEADS = 3

Weights = dict[str, Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> Model:
    return dlm.load(GOLDEN / family, dtype="float32")


def copied(family: str, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint folder, writable, with other configuration values."""
    target.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / family / name, target / name)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_official_logits(name: str, attention: str) -> None:
    model = dlm.load(GOLDEN / name, dtype="float32", attn_implementation=attention)
    cases = json.loads((GOLDEN / name / "logits.json").read_text())
    assert len(cases) == 3
    for case in cases:
        assert case["mask_token_id"] == model.spec.mask_id
        assert (case["shift"] == "next") == model.spec.shift
        assert case["block_size"] == model.spec.block_size
        found = model.raw_logits(torch.tensor(case["input_ids"])[None])[0]
        torch.testing.assert_close(found, torch.tensor(case["logits"]), atol=1e-4, rtol=0)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def modulated(x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normal * weight * (1 + scale) + shift


def turned(x: Tensor) -> Tensor:
    """Rotary positions as complex numbers: pairs (i, i + E/2) turn by t theta^(-2i/E)."""
    length, width = x.shape[-2:]
    speed = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * speed
    pair = torch.complex(x[..., : width // 2], x[..., width // 2 :])
    out = pair * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((out.real, out.imag), -1)


def reference(weights: Weights, ids: list[int], seen: Tensor) -> Tensor:
    """Logits [L, V] by the equations of the MDLM and DiT papers, in the weights' dtype."""
    w = {name.removeprefix("backbone."): value.double() for name, value in weights.items()}
    blocks = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    sigma = 0.0
    speed = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float64) / 128)
    time = torch.cat(((sigma * speed).cos(), (sigma * speed).sin()))
    level = F.silu(linear(w, "sigma_map.mlp.2", F.silu(linear(w, "sigma_map.mlp.0", time))))
    x = w["vocab_embed.embedding"][ids]
    for i in range(blocks):
        at = f"blocks.{i}"
        s1, c1, g1, s2, c2, g2 = linear(w, f"{at}.adaLN_modulation", level).chunk(6)
        a = linear(w, f"{at}.attn_qkv", modulated(x, w[f"{at}.norm1.weight"], s1, c1))
        q, k, v = a.view(len(ids), 3, HEADS, -1).permute(1, 2, 0, 3)
        scores = turned(q) @ turned(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
        out = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v
        x = x + g1 * linear(w, f"{at}.attn_out", out.transpose(0, 1).flatten(1))
        m = linear(w, f"{at}.mlp.0", modulated(x, w[f"{at}.norm2.weight"], s2, c2))
        x = x + g2 * linear(w, f"{at}.mlp.2", F.gelu(m, approximate="tanh"))
    shift, scale = linear(w, "output_layer.adaLN_modulation", level).chunk(2)
    x = modulated(x, w["output_layer.norm_final.weight"], shift, scale)
    return linear(w, "output_layer.linear", x)


def test_logits_by_the_equations(family: str) -> None:
    model = dlm.load(GOLDEN / family, dtype=torch.float64)
    weights = load_file(GOLDEN / family / "model.safetensors")
    ids = torch.randint(0, 300, (41,), generator=torch.Generator().manual_seed(0)).tolist()
    ids[10:30:3] = [MASKS[family]] * 7
    block = torch.arange(41) // (4 if family == "bd3lm" else 64)
    expected = reference(weights, ids, block[None] <= block[:, None])
    found = model.raw_logits(torch.tensor([ids]))[0]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_facts(family: str, model: Model) -> None:
    spec, mask = model.spec, MASKS[family]
    assert (spec.family, spec.mask_id, spec.eos_id, spec.stop_ids) == (
        family, mask, mask - 1, (mask - 1,),
    )  # fmt: skip
    assert (spec.vocab_size, spec.max_length, spec.shift) == (mask + 1, 64, False)
    assert spec.block_size == (4 if family == "bd3lm" else None)
    assert model.tokenizer is None


def test_released_size() -> None:
    from transformers import AutoModelForMaskedLM

    from dlm.models.dit_configs import Bd3lmConfig, MdlmConfig

    for config in (MdlmConfig(), Bd3lmConfig()):
        assert (config.mask_token_id, config.eos_token_id) == (50257, 50256)
        with torch.device("meta"):
            network = AutoModelForMaskedLM.from_config(config)
        assert sum(p.numel() for p in network.parameters()) == 169_627_218


@torch.no_grad()
def test_only_needed_positions_are_projected(model: Model) -> None:
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    states = model.hidden(ids, torch.arange(12)[None], None)
    assert states.shape == (2, 12, 48)
    line, column = torch.tensor([0, 1, 1]), torch.tensor([11, 0, 5])
    some, every = model.logits(states[line, column]), model.raw_logits(ids)
    torch.testing.assert_close(some, every[line, column], atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_and_positions(model: Model) -> None:
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    columns = torch.arange(12)[None]
    alone = model.logits(model.hidden(ids[:, :7], columns[:, :7], None))
    among = model.logits(model.hidden(ids, columns, columns < 7))[:, :7]
    torch.testing.assert_close(among, alone, atol=1e-4, rtol=0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    moved = model.hidden(ids[:, order], order[None], None)
    torch.testing.assert_close(moved, model.hidden(ids, columns, None)[:, order], atol=1e-4, rtol=0)


def test_block_causal_attention(family: str, model: Model) -> None:
    """A token of a later block changes nothing in BD3LM; in MDLM every token matters."""
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 9] = (ids[0, 9] + 1) % 300
    same = (model.raw_logits(ids) == model.raw_logits(other)).all(-1)[0]
    assert same.tolist() == [family == "bd3lm"] * 8 + [False] * 4


@pytest.mark.parametrize("direct", [False, True], ids=["transformers", "direct"])
def test_bfloat16(family: str, direct: bool) -> None:
    exact = dlm.load(GOLDEN / family, dtype="float32", direct=direct)
    model = dlm.load(GOLDEN / family, dtype="bfloat16", direct=direct)
    assert {name: kept.dtype for name, kept in model.network.named_buffers()} == {
        name: torch.float32 for name, _ in exact.network.named_buffers()
    }
    norm = model.network.backbone.blocks[0].norm1
    x, shift, scale = torch.randn(3, 9, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = F.layer_norm(x.float(), (48,)) * norm.weight.float() * (1 + scale.float())
    assert torch.equal(norm(x, shift, scale), (wide + shift.float()).bfloat16())
    ids = torch.randint(0, 300, (1, 24), generator=torch.Generator().manual_seed(1))
    found = model.raw_logits(ids)
    assert found.dtype == torch.bfloat16
    error = (found.float() - exact.raw_logits(ids)).square().mean().sqrt()
    assert error < 0.03 * exact.raw_logits(ids).std()


def test_save_keeps_the_released_form(family: str, model: Model, tmp_path: Path) -> None:
    model.network.save_pretrained(tmp_path)
    before = load_file(GOLDEN / family / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    released = json.loads((GOLDEN / family / "config.json").read_text())
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in ("auto_map", "torch_dtype", "transformers_version"):
        released.pop(name)
    assert released.items() <= saved.items()
    assert "auto_map" not in saved
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(dlm.load(tmp_path).raw_logits(ids), model.raw_logits(ids))


def test_derived_values_may_be_absent(family: str, model: Model, tmp_path: Path) -> None:
    folder = copied(family, tmp_path / "without")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.endswith("inv_freq") and "eps" not in k}
    assert len(weights) - len(kept) == (3 if family == "bd3lm" else 1)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    found, expected = dlm.load(folder).network.state_dict(), model.network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in weights)


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"])
def test_auto_classes(family: str, auto: str) -> None:
    import transformers

    network = getattr(transformers, auto).from_pretrained(GOLDEN / family)
    assert type(network).__module__ == "dlm.models.dit"
    assert type(network).__name__ == family.upper()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_conditioning": True}, "time_conditioning must be False"),
        ({"parameterization": "ar"}, "parameterization must be 'subs' .* got 'ar'"),
        ({"scale_by_sigma": True}, "scale_by_sigma must be False .* got True"),
        ({"n_heads": 5}, "n_heads must divide hidden_dim"),
        ({"causal": True}, "causal must be False as in every released BD3LM"),
        ({"adaln": False}, "adaln must be True"),
        ({"block_size": 0}, "block_size must be an int >= 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.load(copied("bd3lm", tmp_path / "bad", **changes))


def test_without_block_diffusion_every_token_sees_every_token(tmp_path: Path) -> None:
    """`cross_attn` false is how the MDLM of the BD3LM paper is published."""
    model = dlm.load(copied("bd3lm", tmp_path / "whole", cross_attn=False))
    assert model.spec.block_size is None


@pytest.mark.parametrize("decoder", ["low_confidence", "ancestral", "threshold", "entropy_bound"])
def test_substitution(model: Model, decoder: str) -> None:
    """SUBS: the mask has no probability, and tokens that are there stay."""
    with torch.no_grad():
        model.network.backbone.output_layer.linear.bias[model.spec.mask_id] += 50.0
    try:
        out = dlm.generate(
            model, [[304, 5, 6], [304]], decoder=decoder, gen_length=12, temperature=1.0,
            stop_at_eos=False, return_trajectory=True,
        )  # fmt: skip
    finally:
        with torch.no_grad():
            model.network.backbone.output_layer.linear.bias[model.spec.mask_id] -= 50.0
    mask = model.spec.mask_id
    assert not any(mask in row for row in out.tokens)
    for trajectory in out.trajectory or []:
        for before, after in zip(trajectory.canvases, trajectory.canvases[1:], strict=False):
            assert ((before == after) | (before == mask)).all()
        assert all(0 < change.confidence <= 1 for change in trajectory.commits)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("decoder", ["threshold", "left_to_right"])
def test_caches(family: str, model: Model, decoder: str, cache: str) -> None:
    """Computed anew at every forward MDLM's cache changes nothing, and BD3LM's never does."""
    options: dict[str, Any] = {"decoder": decoder, "gen_length": 24, "block_length": 4}
    options |= {"temperature": 0.7, "stop_at_eos": False}
    prompts = [[304, 5, 6, 7, 8], [304]]
    plain = dlm.generate(model, prompts, **options)
    every = None if family == "bd3lm" else 1
    assert dlm.generate(model, prompts, cache=cache, refresh_every=every, **options).tokens == (
        plain.tokens
    )


@torch.no_grad()
def test_training_sees_dropout_and_gradients(family: str) -> None:
    network = dlm.load(GOLDEN / family).network
    ids = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(ids).logits, network(ids).logits)
    network.train()
    assert not torch.equal(network(ids).logits, network(ids).logits)
    network.requires_grad_(True)
    with torch.enable_grad():
        network(ids).logits.square().mean().backward()
    names = [name for name, p in network.named_parameters() if p.grad is None]
    assert not names


def test_a_fresh_network_predicts_nothing(family: str) -> None:
    """DiT's initialisation: branches and projection start as zero."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    network = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(GOLDEN / family))
    assert not network(torch.tensor([[1, 2, 3]])).logits.any()
    assert network.backbone.vocab_embed.embedding.std() > 0.01
    assert (network.backbone.blocks[0].norm1.weight == 1).all()
    assert network.backbone.blocks[0].mlp[0].weight.std() > 0.01
