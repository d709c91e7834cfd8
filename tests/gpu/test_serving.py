"""An engine on a GPU: rows that come while others are decoded. Skipped without a GPU."""

import time
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import torch

import dlm
from dlm.batch import Batch
from dlm.job import continued
from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.work import Ended, Event, Request
from dlm.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GOLDEN = Path(__file__).parent.parent / "golden" / "tiny-llada"
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [3] * 20, [4], [9, 8, 7, 6]]
PATIENCE = 120.0  # seconds


@pytest.fixture(scope="module")
def model() -> Model:
    return dlm.load(GOLDEN, device="cuda", dtype="float32")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("decoder", ["low_confidence", "first_hitting", "klass"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_rows_are_what_generate_gives(
    model: Model, monkeypatch: pytest.MonkeyPatch, decoder: str, cache: str
) -> None:
    """More than once: steps run plainly, are recorded, and are played. Each has a temperature."""
    joined: list[int] = []
    take = Batch.take

    def counted(batch: Batch, other: Batch) -> None:
        joined.append(len(other.live))
        take(batch, other)

    monkeypatch.setattr(Batch, "take", counted)
    options: dict[str, Any] = {"gen_length": 24, "block_length": 8}
    options |= {"decoder": decoder, "cache": cache, "stop_at_eos": False}
    warmth = [(0.8, 0.3, 1.0, 2.0)[number % 4] for number in range(len(PROMPTS))]
    alone = [
        dlm.generate(model, [prompt], row_keys=[0], temperature=each, **options)
        for prompt, each in zip(PROMPTS, warmth, strict=True)
    ]
    engine = Engine(model, batch_size=4)
    try:
        for _ in range(4):
            told: list[Queue[Event]] = []
            for prompt, each in zip(PROMPTS, warmth, strict=True):
                rows, spans = continued(model, [prompt], [options["gen_length"]])
                told.append(Queue())
                settings = Settings(**options, temperature=each, row_keys=(0,))
                engine.submit(Request(rows, spans, settings), told[-1].put)
                time.sleep(0.01)
            for queue, expected in zip(told, alone, strict=True):
                end = queue.get(timeout=PATIENCE)
                assert isinstance(end, Ended)
                assert [end.tokens] == expected.tokens
                assert [end.forwards] == expected.forwards
    finally:
        engine.close()
    assert joined


@pytest.mark.parametrize("decoder", ["low_confidence", "threshold"])
def test_prompts_are_taken_over(model: Model, decoder: str) -> None:
    """Into caches that recorded steps read; later turns come more than once."""
    blocks = replace(model, spec=replace(model.spec, block_size=8))
    kept = dlm.PromptCache(blocks, gib=0.01)
    options: dict[str, Any] = {"gen_length": 24, "block_length": 8, "temperature": 0.8}
    options |= {"decoder": decoder, "cache": "prefix", "stop_at_eos": False}
    talk = [*range(1, 71)]
    for turn in range(4):
        prompts = [talk, talk[:40]]
        plain = dlm.generate(blocks, prompts, **options, seed=turn)
        found = dlm.generate(blocks, prompts, **options, seed=turn, prompt_cache=kept)
        assert (found.tokens, found.forwards) == (plain.tokens, plain.forwards)
        assert (found.query_tokens < plain.query_tokens) == (turn > 0)
        talk = [*talk, *found.tokens[0]]
