"""Masked language models of transformers, random and tiny, decoded as mask predictors."""

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

import dlm
from dlm.models.encoder import AFTER_PADDING, PROJECTIONS, Encoder, encoder_spec
from dlm.models.model import Model
from dlm.prompts import encode_blanks

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "sun", "is", "red", "blue",
         "and", "very", "##s", "##ed", "ing")  # fmt: skip
WORDPIECE = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4} | {
    word: 5 + i for i, word in enumerate(WORDS)
}
BYTES = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4} | {
    letter: 5 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
}
FACTS: dict[str, Any] = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48}
FACTS |= {"num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.3}
FACTS |= {"max_position_embeddings": 40}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "mpnet": {"max_position_embeddings": 42},
    "modernbert": {"local_attention": 8, "initializer_cutoff_factor": 2.0},
}
EAGER = ("megatron-bert", "mpnet")
"""Model types that `Encoder` has no projection for, and transformers no other attention."""

IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2}
IDS |= {"sep_token_id": 3}
ROBERTA_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def wordpiece() -> Any:
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(WORDPIECE, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=40,
    )  # fmt: skip


def byte_level() -> Any:
    from transformers import AddedToken, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(BYTES, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", cls_token="<s>",
        sep_token="</s>", bos_token="<s>", eos_token="</s>", model_max_length=512,
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )  # fmt: skip


def network(model_type: str, attention: str = "sdpa", **facts: Any) -> Any:
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(1)
    ids = ROBERTA_IDS if model_type in AFTER_PADDING else IDS
    sizes = FACTS | {"vocab_size": len(BYTES)} if model_type in AFTER_PADDING else FACTS
    config = AutoConfig.for_model(model_type, **(sizes | ids | OWN.get(model_type, {}) | facts))
    found = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    # A transformed head of tiny weights would hide what the layers say.
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found.eval()


def wrap(found: Any) -> Model:
    tokenizer = byte_level() if found.config.model_type in AFTER_PADDING else wordpiece()
    return Model(Encoder(found), tokenizer, encoder_spec(found.config, tokenizer))


@pytest.fixture(scope="module")
def made() -> Callable[[str], Model]:
    """One model for each type."""
    kept: dict[str, Model] = {}

    def make(model_type: str) -> Model:
        if model_type not in kept:
            attention = "eager" if model_type in EAGER else "sdpa"
            kept[model_type] = wrap(network(model_type, attention))
        return kept[model_type]

    return make


def rows(model: Model, count: int = 2, length: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(4, 23, (count, length), generator=generator)


@pytest.mark.parametrize("model_type", [*PROJECTIONS, *EAGER])
@torch.no_grad()
def test_logits_are_the_networks_own(made: Callable[[str], Model], model_type: str) -> None:
    model = made(model_type)
    tokens = rows(model)
    own = model.network.network(tokens).logits
    torch.testing.assert_close(model.raw_logits(tokens), own, atol=1e-4, rtol=0)
    assert own.std() > 0.05, "the comparison must be about something"
    positions = torch.arange(tokens.shape[1])[None]
    states = model.hidden(tokens, positions, None)
    line, column = torch.tensor([0, 0, 1]), torch.tensor([3, 19, 7])
    some = model.logits(states[line, column])
    torch.testing.assert_close(some, own[line, column], atol=1e-4, rtol=0)
    assert (states.shape[-1] == own.shape[-1]) == (model_type not in PROJECTIONS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", PROJECTIONS)
@torch.no_grad()
def test_padding_changes_nothing(model_type: str, attention: str) -> None:
    model = wrap(network(model_type, attention))
    short, width = rows(model, 1, 9), 14
    padded = torch.cat((short, torch.full((1, width - 9), 7)), 1)
    columns = torch.arange(width)[None]
    valid = columns < 9
    alone = model.logits(model.hidden(short, columns[:, :9], None))
    among = model.logits(model.hidden(padded, columns, valid))[:, :9]
    open_ = model.logits(model.hidden(padded, columns, None))[:, :9]
    torch.testing.assert_close(among, alone, atol=1e-4, rtol=0)
    assert (open_ - alone).abs().max() > 1e-3, "the mask must have made the difference"


@torch.no_grad()
def test_padding_changes_nothing_without_a_projection(made: Callable[[str], Model]) -> None:
    model = made("mpnet")
    short, width = rows(model, 1, 9), 14
    padded = torch.cat((short, torch.full((1, width - 9), 0)), 1)
    columns = torch.arange(width)[None]
    among = model.hidden(padded, columns, columns < 9)[:, :9]
    torch.testing.assert_close(among, model.raw_logits(short), atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", PROJECTIONS)
@torch.no_grad()
def test_positions_and_not_columns_place_tokens(model_type: str, attention: str) -> None:
    """Columns of a row in another order, with a mask of their own, are the same row.

    Longer than the window of local attention, which has to go by position too.
    """
    model = wrap(network(model_type, attention))
    tokens, order = rows(model, 1), torch.randperm(20, generator=torch.Generator().manual_seed(3))
    seen = torch.rand(20, 20, generator=torch.Generator().manual_seed(4)) < 0.7
    seen |= torch.eye(20, dtype=torch.bool)
    columns = torch.arange(20)[None]
    straight = model.hidden(tokens, columns, None, attend=seen[None])
    moved = model.hidden(tokens[:, order], order[None], None, attend=seen[order][:, order][None])
    torch.testing.assert_close(moved, straight[:, order], atol=1e-4, rtol=0)
    everything = model.hidden(tokens, columns, None, attend=torch.ones(1, 20, 20, dtype=torch.bool))
    torch.testing.assert_close(everything, model.hidden(tokens, columns, None), atol=1e-4, rtol=0)
    assert (everything - straight).abs().max() > 1e-3


TEXTS = ["the cat sat", "a red dog ran on", ""]
DECODERS = ("low_confidence", "entropy", "threshold", "entropy_bound", "wino", "remdm", "saber",
            "pc_sampler", "left_to_right")  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert", "roberta"])
def test_every_blank_gets_a_word(
    made: Callable[[str], Model], model_type: str, decoder: str
) -> None:
    model = made(model_type)
    options: dict[str, Any] = {"decoder": decoder, "gen_length": 12, "temperature": 1.0}
    out = dlm.generate(model, TEXTS, block_length=5, **options)
    alone = dlm.generate(model, TEXTS[1], block_length=5, row_keys=[1], **options)
    assert alone.tokens == out.tokens[1:2]
    assert [len(row) for row in out.tokens] == [12] * 3
    special = {*model.spec.banned, *model.tokenizer.all_special_ids}  # type: ignore[union-attr]
    assert special >= {0, 1, 2, 3, 4}
    assert not special & {token for row in out.tokens for token in row}
    assert out.texts is not None
    assert all(out.texts)


def seen_by_the_network(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Tokens of every forward from here on."""
    seen: list[list[int]] = []
    states = Encoder.states

    def spy(self: Encoder, tokens: Tensor, *rest: Any) -> Tensor:
        seen.extend(tokens.tolist())
        return states(self, tokens, *rest)

    monkeypatch.setattr(Encoder, "states", spy)
    return seen


@pytest.mark.parametrize(
    "prompt", ["the cat", [2, 5, 6, 3], [2, 5, 6]], ids=["text", "closed", "open"]
)
def test_what_closes_a_row_stands_behind_the_blanks(
    made: Callable[[str], Model], prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("bert")
    seen = seen_by_the_network(model, monkeypatch)
    out = dlm.generate(model, prompt, gen_length=3, block_length=None)
    assert seen[0] == [2, 5, 6, 4, 4, 4, 3]
    assert seen[-1][:3] == [2, 5, 6]
    assert seen[-1][-1] == 3
    assert len(out.tokens[0]) == 3
    assert dlm.encode_prompts(model, prompt) == [[2, 5, 6]]


def test_a_row_has_to_fit_with_what_closes_it(made: Callable[[str], Model]) -> None:
    model = made("bert")
    assert model.spec.max_length == 40
    dlm.generate(model, "the cat", gen_length=36, steps=1, block_length=None)
    with pytest.raises(ValueError, match="the model's 40 positions, got 41"):
        dlm.generate(model, "the cat", gen_length=37)


def test_infill_between_words(
    made: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("bert")
    seen = seen_by_the_network(model, monkeypatch)
    out = dlm.infill(model, ["the [MASK:2] sat on [MASK].", "[MASK] sat"], block_length=None)
    the, sat, on = (WORDPIECE[word] for word in ("the", "sat", "on"))
    assert seen[0] == [2, the, 4, 4, sat, on, 4, 1, 3]
    assert seen[1][:4] == [2, 4, sat, 3]
    assert not {0, 1, 2, 3, 4} & {*out.tokens[0][2:4], out.tokens[0][6], out.tokens[1][1]}
    assert out.tokens[0][:2] == [2, the]
    assert out.tokens[1][2:] == [sat, 3]
    assert out.texts is not None
    assert out.texts[0].startswith("the ")


@pytest.mark.parametrize(
    "text", ["the [MASK:2] sat", "[MASK]", "[MASK] sat[MASK:1][MASK]", "[MASK:3] [MASK] the"]
)
def test_blanks_need_no_token_of_their_own(made: Callable[[str], Model], text: str) -> None:
    """A tokenizer that does not know the mask, as LLaDA's, tokenizes what is between blanks."""
    model = made("bert")
    bare = wordpiece()
    bare.mask_token = None
    assert encode_blanks(replace(model, tokenizer=bare), text) == encode_blanks(model, text)


def test_a_blank_takes_the_space_before_it_as_its_tokenizer_says(
    made: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("roberta")
    seen = seen_by_the_network(model, monkeypatch)
    dlm.infill(model, "a [MASK:2] b", steps=1, block_length=None)
    space = BYTES["\u0120"]
    assert seen[0] == [0, BYTES["a"], 4, 4, space, BYTES["b"], 2]


def test_right_context_matters(made: Callable[[str], Model]) -> None:
    model = made("bert")
    one, other = (
        dlm.infill(model, f"the [MASK:4] {end}", decoder="left_to_right").tokens[0][2:6]
        for end in ("sun is red", "dog ran on")
    )
    assert one != other


@pytest.mark.parametrize(
    ("model_type", "length"), [("bert", 40), ("modernbert", 40), ("roberta", 38), ("mpnet", 40)]
)
def test_facts(made: Callable[[str], Model], model_type: str, length: int) -> None:
    spec = made(model_type).spec
    assert spec.max_length == length
    assert (spec.mask_id, spec.stop_ids, spec.shift, spec.block_size) == (4, (), False, None)
    assert spec.never == (0, 1, 2, 3)
    assert spec.suffix == ((2,) if model_type == "roberta" else (3,))
    assert set(range(spec.unused[0], spec.vocab_size)) <= set(spec.banned)
    full = torch.full((1, length), 9)
    assert made(model_type).raw_logits(full).isfinite().all()


def test_refusals(made: Callable[[str], Model]) -> None:
    model = made("bert")
    config = model.network.config
    with pytest.raises(ValueError, match="a bert needs its tokenizer"):
        encoder_spec(config, None)
    with pytest.raises(ValueError, match="mask_id must be an int <= 47, got 48"):
        encoder_spec(config, model.tokenizer, 48)
    bare = wordpiece()
    bare.mask_token = None
    with pytest.raises(ValueError, match="the tokenizer's mask must be an id below"):
        encoder_spec(config, bare)
    with pytest.raises(ValueError, match="is_decoder must be False for a mask predictor"):
        Encoder(network("bert", is_decoder=True))
    with pytest.raises(ValueError, match="cache must be 'none' for bert"):
        dlm.generate(model, "the cat", cache="prefix", gen_length=4)
    with pytest.raises(ValueError, match="a network of mpnet takes whole rows only"):
        dlm.generate(made("mpnet"), "the cat", decoder="wino", gen_length=4)
    assert len(dlm.generate(made("mpnet"), TEXTS, gen_length=4).tokens) == 3


def saved(found: Any, folder: Path) -> Path:
    found.save_pretrained(folder)
    (byte_level() if found.config.model_type in AFTER_PADDING else wordpiece()).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert", "mpnet", "roberta"])
def test_load(made: Callable[[str], Model], model_type: str, tmp_path: Path) -> None:
    kept = made(model_type)
    model = dlm.load(saved(kept.network.network, tmp_path))
    assert model.spec == kept.spec
    tokens = rows(model)
    torch.testing.assert_close(model.raw_logits(tokens), kept.raw_logits(tokens), atol=1e-4, rtol=0)
    options: dict[str, Any] = {"gen_length": 8, "temperature": 1.0}
    found, expected = (dlm.generate(one, TEXTS, **options) for one in (model, kept))
    assert found.tokens == expected.tokens
    assert found.texts == expected.texts


def test_load_leaves_other_heads(tmp_path: Path) -> None:
    """Checkpoints with the heads of pretraining have all that is needed, and more."""
    from transformers import BertForPreTraining

    config = network("bert").config
    model = dlm.load(saved(BertForPreTraining(config), tmp_path / "pretraining"))
    assert type(model.network.network).__name__ == "BertForMaskedLM"


def test_load_refuses_a_network_without_a_projection(tmp_path: Path) -> None:
    from transformers import BertModel

    with pytest.raises(ValueError, match="do not fit its configuration: missing_keys: cls"):
        dlm.load(saved(BertModel(network("bert").config), tmp_path))


def test_load_needs_a_tokenizer(tmp_path: Path) -> None:
    network("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a bert needs its tokenizer"):
        dlm.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["the [MASK:3] sat on a mat", "the cat"], ids=["infill", "generate"]
)
def test_example(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(network("bert"), tmp_path)
    main = runpy.run_path(str(EXAMPLES / "bert_diffusion.py"))["main"]
    main([str(folder), text, "--length", "3", "--temperature", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert [line.count("[MASK]") for line in lines] == [3, 2, 1, 0, 0]
    assert lines[-1] == "(3 forwards)"
