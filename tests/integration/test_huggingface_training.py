"""transformers' Trainer trains our networks, goes on where it stopped, and counts labels right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

import dlm
from dlm.models.loading import silence

CLEAN = torch.tensor([5, 6, 7, 8, 9])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with silence():
        yield


def fresh(folder: Path, **options: Any) -> Any:
    return AutoModelForMaskedLM.from_pretrained(folder, **options)


def trainer(network: Any, folder: Path, rows: list[dict[str, Tensor]], **options: Any) -> Trainer:
    usual: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **(usual | options)
    )
    return Trainer(network, arguments, train_dataset=rows, eval_dataset=rows[:1])


def example(mask: int, *hidden: int) -> dict[str, Tensor]:
    """The row with some of its tokens masked, which are its labels."""
    where = torch.isin(torch.arange(len(CLEAN)), torch.tensor(hidden))
    return {
        "input_ids": CLEAN.masked_fill(where, mask),
        "labels": CLEAN.masked_fill(~where, -100),
    }


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_trainer_learns(family: str, written: Callable[[str], Path], tmp_path: Path) -> None:
    network = fresh(written(family))
    row = example(dlm.as_model(network).spec.mask_id, 1, 3, 4)
    runs = trainer(network, tmp_path, [row] * 8, max_steps=8)
    before = runs.evaluate()["eval_loss"]
    runs.train()
    assert runs.evaluate()["eval_loss"] < before / 2
    filled = dlm.infill(dlm.as_model(network), row["input_ids"].tolist())
    assert filled.tokens == [CLEAN.tolist()]


@pytest.mark.parametrize("family", ["llada", "llada2", "rnd1", "dream", "mdlm"])
def test_what_was_saved_is_a_state_dict(
    family: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Trainer reads its checkpoints so: names as released, experts one by one."""
    network = fresh(written(family))
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    other = fresh(written(family))
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    found = other.load_state_dict(saved, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}  # where it is the embedding
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    assert not other.load_state_dict(network.state_dict()).missing_keys
    with pytest.raises(RuntimeError, match=r"Unexpected key.*no\.such\.weight"):
        other.load_state_dict(network.state_dict() | {"no.such.weight": torch.ones(1)})


def test_experts_in_several_files(written: Callable[[str], Path], tmp_path: Path) -> None:
    """What holds some experts leaves the others as they are."""
    network, other = fresh(written("llada2")), fresh(written("llada2"))
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    names = sorted(saved)
    for part in (names[::2], names[1::2]):
        other.load_state_dict({name: saved[name] for name in part}, strict=False)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


@pytest.fixture
def experts(written: Callable[[str], Path], tmp_path: Path) -> tuple[Any, dict[str, Tensor]]:
    """A network with experts, and its weights under released names."""
    network = fresh(written("llada2"))
    network.save_pretrained(tmp_path)
    return network, load_file(tmp_path / "model.safetensors")


def test_missing_experts_are_missed(experts: tuple[Any, dict[str, Tensor]]) -> None:
    network, saved = experts
    assert network.load_state_dict(saved)
    for gone in (".experts.1.", ".experts.0.up_proj"):
        part = {name: weight for name, weight in saved.items() if gone not in name}
        with pytest.raises(RuntimeError, match=r"Missing key.*experts\.gate_up_proj"):
            network.load_state_dict(part)


def test_experts_of_another_shape_are_refused(experts: tuple[Any, dict[str, Tensor]]) -> None:
    network, saved = experts
    (name, *_) = [name for name in saved if name.endswith("experts.0.down_proj.weight")]
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}: "):
        network.load_state_dict(saved | {name: saved[name][:1]})


def test_experts_are_assigned(experts: tuple[Any, dict[str, Tensor]]) -> None:
    """To a network without memory of its own, and in the dtype that they have."""
    network, saved = experts
    with torch.device("meta"):
        empty = type(network)(network.config)
    half = {name: weight.bfloat16() for name, weight in saved.items()}
    assert not empty.load_state_dict(half, assign=True).missing_keys
    for name, weight in empty.named_parameters():
        assert (weight.device.type, weight.dtype) == ("cpu", torch.bfloat16), name
    assert torch.equal(
        empty.get_parameter("model.layers.1.mlp.experts.down_proj"),
        network.get_parameter("model.layers.1.mlp.experts.down_proj").bfloat16(),
    )


@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")  # Trainer's own
def test_a_run_goes_on(written: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [example(1, 1, 3), example(1, 2), example(1, 0, 4), example(1, 1, 2, 3)]
    often = {"save_strategy": "steps", "save_steps": 2}
    whole = fresh(written("llada"))
    trainer(whole, tmp_path, rows, **often).train()
    again = fresh(written("llada"))
    trainer(again, tmp_path, rows, **often).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "family", ["llada", "dream", "mdlm", "sdar", "sdar-moe", "illada", "dream-reasoner"]
)
def test_accumulated_batches_are_one_batch(
    family: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Though one of them has more labels, and in a shift family some that count for nothing."""
    rows = [example(1, 0), example(1, 0, 1, 2, 3, 4), example(1, 2), example(1, 0, 3)]
    calm = {"dropout": 0.0} if family == "mdlm" else {}  # it would draw other elements
    ended = []
    for size in (4, 1):
        network = fresh(written(family), **calm)
        runs = trainer(
            network,
            tmp_path,
            rows,
            max_steps=1,
            learning_rate=0.5,
            optim="sgd",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_grad_norm=0.0,
        )
        whole = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        mean = network(**whole).loss.item()
        assert runs.train().training_loss == pytest.approx(mean, rel=1e-5)
        ended.append(network.state_dict())
    start = fresh(written(family)).state_dict()
    moved = max(float((ended[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((ended[0][name] - ended[1][name]).abs().max()) for name in start)
    assert moved > 0
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("family", ["llada", "dream", "rnd1", "mdlm"])
def test_smoothed_labels_stay_at_their_tokens(
    family: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    network = fresh(written(family)).eval()
    batch = {name: part[None] for name, part in example(1, 1, 2, 4).items()}
    plain = network(**batch).loss
    runs = trainer(network, tmp_path, [], label_smoothing_factor=1e-7)
    torch.testing.assert_close(runs.compute_loss(network, dict(batch)), plain)
