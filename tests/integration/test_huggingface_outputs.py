"""What callers of transformers ask of a forward beside logits, by itself and through Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

import dlm
from dlm.models.loading import silence

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
    out.loss.backward()
    assert all(p.grad is not None for p in layers_of(network)[0].parameters() if p.requires_grad)


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
    with pytest.raises(ValueError, match=r"output_attentions must be False: .* got True"):
        network(IDS, output_attentions=True)
    with pytest.raises(ValueError, match=r"use_cache must be False: .* got True"):
        network(IDS, use_cache=True)
    with pytest.raises(ValueError, match=r"labels must be of shape \[2, 5\], .* got \[2, 4\]"):
        network(IDS, labels=LABELS[:, :4])


@pytest.mark.parametrize("family", ["llada", "dream"], indirect=True)
def test_trainer_learns(network: Any, tmp_path: Path) -> None:
    mask = dlm.as_model(network).spec.mask_id
    clean = torch.tensor([5, 6, 7, 8, 9])
    hidden = torch.tensor([False, True, False, True, True])
    row = {
        "input_ids": clean.masked_fill(hidden, mask),
        "labels": clean.masked_fill(~hidden, -100),
    }
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=8,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(network, arguments, train_dataset=[row] * 8, eval_dataset=[row])
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    filled = dlm.infill(dlm.as_model(network), row["input_ids"].tolist())
    assert filled.tokens == [clean.tolist()]
