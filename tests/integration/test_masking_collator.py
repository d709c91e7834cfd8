"""Batches of `dlm.MaskingCollator`: what is masked, how often, and what the loss of them is."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

import dlm
from dlm.models.loading import silence
from dlm.models.spec import ModelSpec
from dlm.training.loss import harmonic_counts, harmonic_numbers

SPEC = ModelSpec("llada", 50, 1, 2, (2,), 20, (50, 50))
ROWS: list[dict[str, Any]] = [
    {"input_ids": [5, 6, 7, 8, 9, 2], "labels": [-100, -100, -100, 8, 9, 2], "text": "left aside"},
    {"input_ids": [11, 12, 13], "labels": [-100, 12, 13]},
    {"input_ids": torch.tensor([20, 21, 22, 23])},
]
BLOCKS = ("sdar", "llada2", "fast-dllm-v2", "bd3lm")


def seeded(spec: ModelSpec, **options: Any) -> dlm.MaskingCollator:
    return dlm.MaskingCollator(spec, generator=torch.Generator().manual_seed(3), **options)


@pytest.mark.parametrize("length", [1, 2, 7, 300])
def test_counts_are_harmonic(length: int) -> None:
    level = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    found = harmonic_counts(torch.full(level.shape, length), level)
    share = torch.bincount(found, minlength=length + 1)[1:] / len(level)
    expected = 1 / torch.arange(1, length + 1)
    torch.testing.assert_close(share, expected / expected.sum(), atol=1e-5, rtol=0)
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert harmonic_counts(torch.tensor([length, length]), ends).tolist() == [1, length]


def test_a_level_between_two_counts_is_the_greater() -> None:
    assert harmonic_counts(
        torch.tensor([2]), torch.tensor([2 / 3], dtype=torch.float64)
    ).tolist() == [2]


def test_every_mask_of_a_size_is_as_frequent() -> None:
    """So that the sum over masked tokens has the weight 1 / k of the bound in its frequency."""
    collate, rows = seeded(SPEC, end_as_content=False), [{"input_ids": [5, 6, 7]}] * 50
    seen: Counter[tuple[bool, ...]] = Counter()
    for _ in range(160):
        seen.update(map(tuple, (collate(rows)["input_ids"] == 1).tolist()))
    harmonic = 1 + 1 / 2 + 1 / 3
    assert len(seen) == 7
    for mask, times in seen.items():
        k = sum(mask)
        assert times / 8_000 == pytest.approx(1 / k / harmonic / math.comb(3, k), abs=0.015)


def test_masks_of_a_block_have_the_law_of_a_row() -> None:
    """The first three of eight tokens, where any of them is masked."""
    collate, rows = seeded(SPEC, end_as_content=False), [{"input_ids": [*range(5, 13)]}] * 50
    hidden = torch.cat([collate(rows)["input_ids"][:, :3] == 1 for _ in range(300)])
    counts = hidden.sum(-1).bincount(minlength=4)[1:]
    expected = 1 / torch.arange(1, 4)
    torch.testing.assert_close(counts / counts.sum(), expected / expected.sum(), atol=0.02, rtol=0)


@pytest.mark.parametrize("end_as_content", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_what_may_be_masked(end_as_content: bool, multiple: int) -> None:
    collate = seeded(SPEC, end_as_content=end_as_content, pad_to_multiple_of=multiple)
    width = 6 if multiple == 1 else 8
    ever = torch.zeros(3, width, dtype=torch.bool)
    for _ in range(200):
        batch = collate(ROWS)
        ids, labels, valid = (batch[n] for n in ("input_ids", "labels", "attention_mask"))
        hidden = ids == 1
        ever |= hidden
        assert torch.equal(hidden, labels != -100)
        for row, clean, seen in zip(ROWS, ids.where(~hidden, labels), valid, strict=True):
            more = width - len(row["input_ids"])
            assert clean.tolist() == [*row["input_ids"], *[2] * more]
            assert seen.tolist() == [1] * len(row["input_ids"]) + [int(end_as_content)] * more
    own, behind = [[3, 4, 5], [1, 2], [0, 1, 2, 3]], [range(6, 8), range(3, 8), range(4, 8)]
    for found, free, filled in zip(ever, own, behind, strict=True):
        ends = [place for place in filled if place < width] if end_as_content else []
        assert found.nonzero().flatten().tolist() == [*free, *ends]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("lengths", [[16], [16, 16], [4, 40]])
def test_the_mean_has_no_bias_where_the_rows_of_a_step_are_told(lengths: list[int]) -> None:
    """Of tokens whose surprise grows with how many are masked; untold, it is far too low."""
    rows = torch.tensor(lengths)

    def mean(**options: Any) -> Tensor:
        collate, noise = dlm.MaskingCollator(SPEC, **options), torch.Generator().manual_seed(0)
        counts = torch.stack([collate.counts(rows, noise) for _ in range(6000)]).double()
        return ((counts * (1 + 3 * counts / rows)).sum(-1) / counts.sum(-1)).mean()

    harmonic = harmonic_numbers(40)[rows - 1]
    bounds = torch.stack([(1 + 3 * torch.arange(1, n + 1) / n).mean() for n in lengths])
    expected = (rows / harmonic * bounds).sum() / (rows / harmonic).sum()
    torch.testing.assert_close(mean(rows_per_step=len(rows)), expected, atol=0.04, rtol=0)
    assert mean() < expected - 0.2
    assert mean() < mean(rows_per_step=2 * len(rows)) < expected - 0.1


@pytest.mark.one_in(2)
@pytest.mark.parametrize("batches", [2, 8])
def test_little_bias_is_left_where_batches_are_accumulated(batches: int) -> None:
    rows = torch.tensor([16])

    def mean(**options: Any) -> float:
        collate, noise = dlm.MaskingCollator(SPEC, **options), torch.Generator().manual_seed(0)
        drawn = torch.stack([collate.counts(rows, noise) for _ in range(3000 * batches)]).double()
        counts = drawn.view(3000, batches)
        return ((counts * (1 + 3 * counts / 16)).sum(-1) / counts.sum(-1)).mean().item()

    expected = 1 + 3 * 17 / 32
    assert abs(mean(rows_per_step=batches) - expected) < (expected - mean()) / 3


def test_told_rows_are_drawn_by_the_tokens_they_mask() -> None:
    """Of one token and of three: p(k) (1 + k), as the first always masks its one."""
    collate, noise = dlm.MaskingCollator(SPEC, rows_per_step=2), torch.Generator().manual_seed(0)
    counts = torch.stack([collate.counts(torch.tensor([1, 3]), noise) for _ in range(6000)])
    assert (counts[:, 0] == 1).all()
    share = counts[:, 1].bincount(minlength=4)[1:] / 6000
    k = torch.arange(1, 4)
    expected = (1 + k) / k
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.02, rtol=0)


def test_processes_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer seeds all alike."""
    found = []
    for rank in (0, 1, 0):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        torch.manual_seed(5)
        found.append(dlm.MaskingCollator(SPEC)([{"input_ids": [*range(5, 17)]}] * 8)["input_ids"])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_workers_get_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Any = [{"input_ids": [*range(5, 17)]}] * 4
    torch.manual_seed(5)
    loader = DataLoader(rows, batch_size=2, collate_fn=dlm.MaskingCollator(SPEC), num_workers=2)
    batches = [batch["input_ids"] for _ in range(2) for batch in loader]
    assert len({tuple(batch.flatten().tolist()) for batch in batches}) == 4
    # In one of theirs: torch waits five seconds for a worker that raises.
    monkeypatch.setattr("dlm.huggingface.masking.get_worker_info", object)
    with pytest.raises(ValueError, match="generator must be None with workers of a DataLoader"):
        seeded(SPEC)(rows)


def test_padding_stays_within_the_model() -> None:
    batch = seeded(SPEC, pad_to_multiple_of=16)([{"input_ids": [5] * 18}])
    assert batch["input_ids"].shape == (1, 20)


def test_noise_comes_from_a_seed() -> None:
    first, second = (seeded(SPEC)(ROWS)["input_ids"] for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(5)
    plain = dlm.MaskingCollator(SPEC)
    third, fourth = plain(ROWS)["input_ids"], plain(ROWS)["input_ids"]
    assert not torch.equal(third, fourth)
    torch.manual_seed(5)
    assert torch.equal(plain(ROWS)["input_ids"], third)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("end_as_content", [True, False])
@pytest.mark.parametrize("family", [*BLOCKS, "llada", "dream"])
@torch.no_grad()
def test_a_loss_is_that_of_what_decoding_sees(
    family: str, attention: str, end_as_content: bool, written: Callable[[str], Path]
) -> None:
    """Each block by itself: clean tokens before it, its masks, and nothing behind it."""
    size: dict[str, Any] = {"block_size": 4} if family in BLOCKS else {}
    model = dlm.load(written(family), attn_implementation=attention, dtype="float32", **size)
    spec, grid = model.spec, model.spec.grid or 11
    assert grid == (4 if family in BLOCKS else 11)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 30, (length,), generator=generator) for length in (11, 6) * 6]
    collate = seeded(spec, end_as_content=end_as_content)
    batch = collate([{"input_ids": row} for row in rows])
    hidden = batch["input_ids"][:, :11] == spec.mask_id
    assert hidden[:, [4, 8]].any(), "where blocks begin, too"
    found = []
    for number, row in enumerate(rows):
        clean = torch.full((11 if end_as_content else len(row),), spec.eos_id)
        clean[: len(row)] = row
        for place in hidden[number].nonzero().flatten().tolist():
            begin = place // grid * grid
            block = batch["input_ids"][number, begin : min(begin + grid, len(clean))]
            canvas = torch.cat((clean[:begin], block))[None]
            states = model.hidden(canvas, torch.arange(canvas.shape[1])[None], None)
            odds = model.logits(states)[0, place].double().log_softmax(-1)
            found.append(-odds[clean[place]])
    assert int((batch["labels"] != -100).sum()) == len(found)
    loss = model.network(**batch).loss.double()
    torch.testing.assert_close(loss, torch.stack(found).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", ["llada", "sdar", "dream"])
def test_trainer_learns(family: str, written: Callable[[str], Path], tmp_path: Path) -> None:
    with silence():
        network = AutoModelForMaskedLM.from_pretrained(written(family), dtype=torch.float32)
    model = dlm.as_model(network)
    row = {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=40, learning_rate=1e-2, per_device_train_batch_size=8,
        gradient_accumulation_steps=2, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    rows: Any = [row] * 16
    collate = dlm.MaskingCollator(model.spec)
    runs = Trainer(network, arguments, collate, rows, eval_dataset=rows[:4])
    before = runs.evaluate()["eval_loss"]
    runs.train()
    assert runs.evaluate()["eval_loss"] < before / 4
    network.eval()
    found = dlm.generate(model, [[5, 6]], gen_length=4, stop_at_eos=False)
    assert found.tokens == [[7, 8, 9, 10]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5] * 21}, "must fit the model's 20 positions, got 21 in row 1"),
        ({"input_ids": [5, 6], "labels": [-100] * 2}, "token to mask, got none in row 1"),
        ({"input_ids": [5, 6], "labels": [-100, 7]}, "must be -100 or the id in input_ids"),
        ({"input_ids": [5, 1]}, "and not the mask's, in row 1"),
        ({"input_ids": [5, 6], "labels": [6]}, r"as many of both, got \[2\] and \[1\] in row 1"),
        ({"input_ids": [[5, 6]]}, r"got \[1, 2\] and \[1, 2\] in row 1"),
        ({"input_ids": [0.5]}, "must be ids"),
        (
            {"input_ids": [5, 9999]},
            r"must be below the vocabulary size \d+ .*, got 5 to 9999",
        ),
        ({"input_ids": [-2, 5]}, r"must be below the vocabulary size \d+ and >= 0, got -2 to 5"),
        ({"text": "a"}, r"input_ids must be in each row, got \['text'\] in row 1"),
    ],
)
def test_rows_that_are_none(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.MaskingCollator(SPEC)([{"input_ids": [5]}, row])


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows must hold one at least, got \[\]"):
        seeded(SPEC)([])


def test_what_cannot_be_trained_so(written: Callable[[str], Path]) -> None:
    model = dlm.load()
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (model.network, {}, r"spec must be .*as_model\(network\)\.spec, got a LLaDAModelLM"),
        (SPEC, {"end_as_content": 1}, "end_as_content must be True or False, got 1"),
        (SPEC, {"rows_per_step": 0}, "rows_per_step must be an int >= 1, got 0"),
        (SPEC, {"pad_to_multiple_of": 0}, "pad_to_multiple_of must be an int >= 1, got 0"),
        (dlm.load(written("encoder")).spec, {}, "end_as_content must be False for bert"),
        (dlm.load(written("nemotron-labs-diffusion")).spec, {}, "cannot be trained so"),
    ]
    for spec, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            dlm.MaskingCollator(spec, **options)
