"""What callers of transformers ask of a forward beside logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AutoModelForMaskedLM

import dlm  # noqa: F401 (its networks are what the Auto class gives)
from dlm.models.attention import mask_of
from dlm.models.loading import silence
from dlm.models.outputs import masked_loss

FAMILIES = ["llada", "dream", "sdar", "llada2", "mdlm"]
SHIFTED = {"dream"}
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 4, 8, 3, 7]])
LABELS = torch.tensor([[-100, 6, -100, 3, 9], [9, -100, 1, -100, -100]])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with silence():
        yield


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(family: str, written: Callable[[str], Path]) -> Any:
    return AutoModelForMaskedLM.from_pretrained(written(family))


def layers_of(network: Any) -> Any:
    return network.model.layers if hasattr(network, "model") else network.backbone.blocks


def by_hand(logits: Tensor, shift: bool) -> Tensor:
    """Mean surprise of the labels, token by token."""
    found = []
    for row, column in (LABELS != -100).nonzero().tolist():
        if column >= shift:
            odds = logits[row, column - shift].double().log_softmax(-1)
            found.append(-odds[LABELS[row, column]])
    return torch.stack(found).mean()


def test_the_loss_of_labels(family: str, network: Any) -> None:
    plain = network(IDS)
    assert plain.loss is None
    assert list(plain) == ["logits"]
    out = network(IDS, labels=LABELS)
    assert torch.equal(out.logits, plain.logits)
    torch.testing.assert_close(out.loss.double(), by_hand(plain.logits, family in SHIFTED))
    assert torch.equal(network(IDS, labels=LABELS.int()).loss, out.loss)
    out.loss.backward()
    assert all(p.grad is not None for p in layers_of(network)[0].parameters() if p.requires_grad)


def test_no_label_is_no_loss(network: Any) -> None:
    """A batch of which nothing was masked changes nothing, whatever the whole step counts."""
    none = torch.full_like(LABELS, -100)
    for count in (None, 0, torch.tensor(0), 7):
        loss = network(IDS, labels=none, num_items_in_batch=count).loss
        assert loss.item() == 0
    loss.backward()
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dims", [3, 4])
def test_a_mask_for_every_query(network: Any, dims: int, attention: str) -> None:
    """The second row sees its first three tokens alone."""
    network.set_attn_implementation(attention)
    sees = torch.ones(2, 5, 5, dtype=torch.bool)
    sees[1, :, 3:] = False
    mask = sees if dims == 3 else sees[:, None]
    found = network(IDS, attention_mask=mask).logits
    assert torch.equal(network(IDS, attention_mask=mask.long()).logits, found)
    for part, alone in ((found[:1], IDS[:1]), (found[1:, :3], IDS[1:, :3])):
        torch.testing.assert_close(part, network(alone).logits, atol=1e-4, rtol=0)
    network.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, L\] for .*'flex_attention'"):
        network(IDS, attention_mask=mask)


def test_a_mask_of_the_backends_own_kind_is_handed_on(network: Any) -> None:
    network.set_attn_implementation("flex_attention")
    mask: Any = create_block_mask(lambda b, h, q, k: q >= k, 1, None, 5, 5, device="cpu")
    assert mask_of(network.config, torch.zeros(1, 5, 8), mask) is mask
    assert masked_loss(network.config, torch.zeros(2, 5, 9), LABELS % 9, mask) is not None


def test_hidden_states_of_every_layer(network: Any) -> None:
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: seen.append(call[-1]))
        for layer in layers_of(network)
    ]
    out = network(IDS, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert torch.equal(out.logits, network(IDS).logits)
    assert len(out.hidden_states) == len(seen) + 1
    assert torch.equal(out.hidden_states[0], network.get_input_embeddings()(IDS))
    for state, expected in zip(out.hidden_states[1:-1], seen[:-1], strict=True):
        assert torch.equal(state, expected)
    places = torch.arange(IDS.shape[1])[None]
    assert torch.equal(out.hidden_states[-1], network.states(IDS, None, places))
    assert torch.equal(network.project(out.hidden_states[-1]), out.logits)


def test_a_configuration_may_ask_for_them(family: str, written: Callable[[str], Path]) -> None:
    asked = AutoModelForMaskedLM.from_pretrained(written(family), output_hidden_states=True)
    assert asked(IDS).hidden_states is not None
    assert asked(IDS, output_hidden_states=False).hidden_states is None
    wanted = AutoModelForMaskedLM.from_pretrained(written(family)).generate(IDS, max_new_tokens=4)
    assert torch.equal(asked.generate(IDS, max_new_tokens=4), wanted)


def test_a_tuple(network: Any) -> None:
    whole = network(IDS, labels=LABELS, output_hidden_states=True, return_dict=True)
    parts = network(IDS, labels=LABELS, output_hidden_states=True, return_dict=False)
    assert isinstance(parts, tuple)
    assert torch.equal(parts[0], whole.loss)
    assert torch.equal(parts[1], whole.logits)
    assert len(parts[2]) == len(whole.hidden_states)
    assert len(network(IDS, return_dict=False)) == 1


def test_what_no_forward_returns(network: Any) -> None:
    usual = network(IDS, output_attentions=False, use_cache=False)
    assert torch.equal(usual.logits, network(IDS).logits)
    with pytest.raises(ValueError, match="output_attentions must be False, got True"):
        network(IDS, output_attentions=True)
    with pytest.raises(ValueError, match="use_cache must be False, got True"):
        network(IDS, use_cache=True)
    with pytest.raises(ValueError, match=r"labels must be of shape \[2, 5\], .* got \[2, 4\]"):
        network(IDS, labels=LABELS[:, :4])


def test_a_configuration_is_heard_in_the_rest_too(written: Callable[[str], Path]) -> None:
    parts = AutoModelForMaskedLM.from_pretrained(written("llada"), return_dict=False)
    assert isinstance(parts(IDS), tuple)
    assert torch.equal(parts(IDS)[0], parts(IDS, return_dict=True).logits)
    eager = AutoModelForMaskedLM.from_pretrained(
        written("llada"), attn_implementation="eager", output_attentions=True
    )
    with pytest.raises(ValueError, match="output_attentions must be False, got True"):
        eager(IDS)
    assert eager(IDS, output_attentions=False).logits.shape[:2] == IDS.shape


def test_embeddings_instead_of_ids(network: Any) -> None:
    embedded = network.get_input_embeddings()(IDS)
    assert torch.equal(network(inputs_embeds=embedded).logits, network(IDS).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        network(IDS, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        network()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_adds_nothing_to_the_loss(side: str, network: Any) -> None:
    """Where the output in front predicts a token, one of padding predicts none."""
    row = torch.tensor([[5, 6, 7, 8, 9]])
    usual = network(row, labels=row).loss
    pads = (3, 0) if side == "left" else (0, 3)
    mask = F.pad(torch.ones_like(row), pads)
    padded = network(
        F.pad(row, pads, value=1),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        labels=F.pad(row, pads, value=-100),
    )
    torch.testing.assert_close(padded.loss, usual)


@pytest.mark.parametrize("family", ["llada", "dream"], indirect=True)
def test_a_loss_is_as_wide_and_where_its_logits_are(network: Any) -> None:
    config, logits = network.config, network(IDS).logits
    wide = masked_loss(config, logits.double(), LABELS)
    assert wide is not None
    assert wide.dtype == torch.float64
    half = masked_loss(config, logits.bfloat16(), LABELS)
    assert half is not None
    assert half.dtype == torch.float32
    away = masked_loss(config, logits.to("meta"), LABELS, torch.ones_like(IDS))
    assert away is not None
    assert away.device.type == "meta"
