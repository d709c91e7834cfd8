"""`stop_strings` of transformers: rows end at a text, and so does the work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    TextStreamer,
    pipeline,
)

import dlm
from dlm.models.loading import silence
from dlm.models.model import Model

CHAT = [{"role": "user", "content": "Compute: 6*8, 9*7, 5*4, 12+6"}]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return dlm.load()


@pytest.fixture(scope="module")
def tokenizer(tiny: Model) -> Any:
    return tiny.tokenizer


@pytest.fixture(scope="module")
def saved(tiny: Model, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny.network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def network(saved: Path) -> Any:
    with silence():
        return AutoModelForCausalLM.from_pretrained(saved)


def test_a_row_ends_behind_a_text(network: Any, tiny: Model, tokenizer: Any) -> None:
    ids = torch.tensor(dlm.encode_prompts(tiny, CHAT))
    options: dict[str, Any] = {"max_new_tokens": 42, "return_dict_in_generate": True}
    whole = network.generate(ids, **options)
    text = tokenizer.decode(whole.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    stop = text[9:12]
    cut = text[: text.index(stop)]
    for given in ({"stop_strings": stop}, {"stop_strings": [stop, "never"]}):
        asked = GenerationConfig(**given)
        for arguments in (given, {"generation_config": asked}):
            out = network.generate(ids, tokenizer=tokenizer, **arguments, **options)
            read = tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True)
            assert read == cut + stop
            assert out.forwards < whole.forwards
    found = dlm.generate(tiny, CHAT, gen_length=42, stop=stop)
    assert (found.texts, found.forwards) == ([cut], out.forwards.tolist())


def test_padding_has_no_order(network: Any, tiny: Model) -> None:
    """Also in the place of end of text that a forward wrote."""
    ids = torch.tensor(dlm.encode_prompts(tiny, CHAT))
    options: dict[str, Any] = {"max_new_tokens": 42, "return_dict_in_generate": True}
    options |= {"return_order": True, "decoder": "entropy", "block_length": None, "steps": 6}
    plain, out = (network.generate(ids, **options, **pad) for pad in ({}, {"pad_token_id": 0}))
    pads = out.sequences != plain.sequences
    assert pads.any()
    behind = pads[:, ids.shape[1] :]
    assert (plain.order[behind] >= 0).any(), "a forward wrote none, or the test shows nothing"
    assert torch.equal(out.order, plain.order.masked_fill(behind, -1))


def test_pipelines(saved: Path) -> None:
    with silence():
        pipe: Any = pipeline("text-generation", model=str(saved))
    (whole,) = pipe(CHAT, max_new_tokens=42)
    text = whole["generated_text"][-1]["content"]
    (one,) = pipe(CHAT, max_new_tokens=42, stop_strings=[text[9:12]])
    assert one["generated_text"][-1]["content"] == text[: text.index(text[9:12]) + 3]


def test_what_cannot_be_followed_is_refused(network: Any, tiny: Model, tokenizer: Any) -> None:
    ids = torch.tensor(dlm.encode_prompts(tiny, CHAT))
    streamer = TextStreamer(tokenizer)
    with pytest.raises(ValueError, match="streamer takes tokens, and stop_strings cut texts"):
        network.generate(ids, stop_strings="4", tokenizer=tokenizer, streamer=streamer)
    with pytest.raises(ValueError, match="stop must be a text or several"):
        network.generate(ids, stop_strings=[""], tokenizer=tokenizer)
    bare = AutoModelForCausalLM.from_config(network.config)
    with pytest.raises(ValueError, match="stop needs a tokenizer"):
        bare.generate(ids, stop_strings="4")
