"""CoDA, DiffuLLaMA and Stable-DiffCoder against Qwen3 and Llama of transformers.

The authors of Stable-DiffCoder give that Llama a mask in blocks; their loop is written here from
what it does, without its cache: blocks of 4 from the first token of the prompt on, and a forward
for each token, or for all that are sure.

Shapes: L tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import dlm

MASK = 91
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [20], [3, 4, 33, 34, 35, 36]]

Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def ours(written: Callable[[str], Path], asks: Callable[[str], dict[str, Any]]) -> Load:
    """The small checkpoint of a family, written from the released form."""
    return lambda name: dlm.load(written(name), dtype="float32", **asks(name))


@pytest.fixture(scope="module")
def theirs(written: Callable[[str], Path]) -> Load:
    """The same weights, under the same names, in the network of transformers."""

    def read(name: str) -> Any:
        told = json.loads((written(name) / "config.json").read_text())
        kinds: tuple[Any, Any] = (LlamaConfig, LlamaForCausalLM)
        if name == "coda":
            kinds = (Qwen3Config, Qwen3ForCausalLM)
        kept = {key: told[key] for key in told if key not in ("model_type", "auto_map")}
        config = kinds[0](**{"tie_word_embeddings": False, **kept})
        config._attn_implementation = "eager"
        network = kinds[1](config)
        network.load_state_dict(load_file(written(name) / "model.safetensors"))
        return network.eval()

    return read


def blocks(length: int, size: int | None) -> Tensor:
    """What to add to scores, [1, 1, L, L]: 0 up to the end of a token's own block."""
    block = torch.arange(length) // (size or length)
    return torch.zeros(length, length).masked_fill_(block[:, None] < block, -torch.inf)[None, None]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "size"), [("coda", None), ("diffullama", None), ("stable-diffcoder", 4)]
)
def test_logits_are_those_of_transformers(
    ours: Load, theirs: Load, name: str, size: int | None
) -> None:
    ids = torch.randint(3, 85, (2, 23), generator=torch.Generator().manual_seed(2))
    network = theirs(name)
    expected = network(ids, attention_mask=blocks(23, size)).logits
    torch.testing.assert_close(ours(name).raw_logits(ids), expected, atol=1e-4, rtol=0)
    assert (network(ids).logits - expected).abs().max() > 0.1  # which is causal by itself


def loop(
    network: Any, prompt: list[int], gen_length: int, threshold: float | None
) -> tuple[list[int], int]:
    """Tokens of one row, and forwards."""
    row = torch.tensor([*prompt, *[MASK] * gen_length])
    sees, forwards = blocks(len(row), 4), 0
    for end in range(4, len(row) + 4, 4):
        inside = torch.arange(len(row)) // 4 == end // 4 - 1
        while (blank := inside & (row == MASK)).any():
            logits = network(row[None], attention_mask=sees).logits[0]
            logits[:, MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            confidence = confidence.where(blank, -1.0)
            sure = confidence >= (2.0 if threshold is None else threshold)
            sure[confidence.argmax()] = True
            row = torch.where(sure, token, row)
            forwards += 1
    return row[len(prompt) :].tolist(), forwards


@torch.no_grad()
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("threshold", [None, 0.12])
def test_stable_diffcoder_decodes_what_its_own_loop_does(
    ours: Load, theirs: Load, cache: str, threshold: float | None
) -> None:
    """Prompts that end within a block, and at its end."""
    decoding: dict[str, Any] = {"decoder": "low_confidence"}
    if threshold is not None:
        decoding = {"decoder": "threshold", "decoder_options": {"threshold": threshold}}
    out = dlm.generate(
        ours("stable-diffcoder"),
        PROMPTS,
        **decoding,
        gen_length=22,
        block_length=4,
        cache=cache,
        stop_at_eos=False,
        suppress_tokens=[],
    )
    network = theirs("stable-diffcoder")
    for number, prompt in enumerate(PROMPTS):
        tokens, forwards = loop(network, prompt, 22, threshold)
        assert out.tokens[number] == tokens
        assert out.forwards[number] == forwards
    assert (max(out.forwards) < 22) == (threshold is not None)


def test_the_projection_of_coda_is_tied_where_its_file_says_so(
    ours: Load, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """And not where it says nothing, as no release does."""
    network = ours("coda").network
    assert network.lm_head.weight.data_ptr() != network.model.embed_tokens.weight.data_ptr()
    assert not network.config.tie_word_embeddings
    told = json.loads((written("coda") / "config.json").read_text())
    weights = load_file(written("coda") / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        dlm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(told | {"tie_word_embeddings": True}))
    network = dlm.load(tmp_path).network
    assert network.lm_head.weight.data_ptr() == network.model.embed_tokens.weight.data_ptr()
