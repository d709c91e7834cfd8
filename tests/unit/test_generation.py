"""`generate`, `stream` and `infill`: what users pass in and get back."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dlm
from dlm.decoders import DECODERS, Threshold
from dlm.models.model import Model

Decoding = Callable[[str], dict[str, Any]]
Toy = Callable[..., Model]
BUILT_IN = Path(dlm.__file__).parent / "assets" / "tiny"


@pytest.fixture(scope="module")
def talker() -> Model:
    """A random network of our own with the built-in tokenizer."""
    from transformers import AutoTokenizer

    from dlm.models.facts import resolve
    from dlm.training.run import Shape, new_network

    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN)
    network = new_network(Shape(width=32, layers=1, heads=2, mlp_width=64), tokenizer, 0).eval()
    return Model(network, tokenizer, resolve(network.config, [], tokenizer))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", DECODERS)
def test_rows_are_independent_on_a_network(
    golden: Model, decoding: Decoding, decoder: str, temperature: float
) -> None:
    """Bit-equal tokens alone, batched, shuffled, and with other rows finishing earlier."""
    rows = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
    options: dict[str, Any] = {**decoding(decoder), "block_length": 5, "temperature": temperature}
    options |= {"stop_at_eos": False, "gen_length": 16, "seed": 3}
    keys = [40, 41, 42]
    together = dlm.generate(golden, rows, row_keys=keys, **options)
    turned = dlm.generate(golden, rows[::-1], row_keys=keys[::-1], **options)
    assert turned.tokens == together.tokens[::-1]
    for row, key, tokens in zip(rows, keys, together.tokens, strict=True):
        assert dlm.generate(golden, [row], row_keys=[key], **options).tokens == [tokens]
    # In one batch with a row that is done after a single forward.
    blanks = [[*row, *[511] * 16] for row in rows]
    early = dlm.infill(golden, [[1, 511], *blanks], row_keys=[7, *keys], **{
        name: value for name, value in options.items() if name != "gen_length"
    })  # fmt: skip
    assert early.forwards[0] == 1 < early.forwards[1]
    assert [row[-16:] for row in early.tokens[1:]] == together.tokens


def test_seed_and_row_key_decide_the_noise(golden: Model) -> None:
    options: dict[str, Any] = {"gen_length": 16, "temperature": 1.0, "stop_at_eos": False}

    def one(**noise: Any) -> list[int]:
        return dlm.generate(golden, [[5, 6]], **options, **noise).tokens[0]

    assert one() == one() == one(seed=0, row_keys=[0])
    assert one() != one(seed=1)
    assert one() != one(row_keys=[1])
    pair = dlm.generate(golden, [[5, 6], [5, 6]], **options).tokens
    assert pair[0] == one() != pair[1] == one(row_keys=[1])


@pytest.mark.parametrize("block_length", [3, 16, None])
def test_nothing_is_filled_where_nothing_ends(golden: Model, block_length: int | None) -> None:
    """Also in a last block that is shorter than the others."""
    for length in (4, 17, 20):
        options: dict[str, Any] = {"gen_length": length, "block_length": block_length}
        for snapshot in dlm.stream(
            golden, [5, 6], stop_at_eos=False, decoder="threshold", **options
        ):
            assert snapshot.filled == []


def test_stream_is_generate_step_by_step(golden: Model) -> None:
    options: dict[str, Any] = {"gen_length": 12, "block_length": 5, "decoder": "threshold",
                               "decoder_options": {"threshold": 0.2}}  # fmt: skip
    out = dlm.generate(golden, [[5, 6, 7]], return_trajectory=True, **options)
    snapshots = list(dlm.stream(golden, [5, 6, 7], **options))
    trajectory = out.trajectory[0]  # type: ignore[index]
    assert snapshots[-1].tokens == out.tokens[0]
    assert [s.done for s in snapshots] == [False] * (out.forwards[0] - 1) + [True]
    assert [s.forward for s in snapshots] == list(range(1, out.forwards[0] + 1))
    assert [s.tokens for s in snapshots[:-1]] == trajectory.canvases[1:].tolist()
    for snapshot in snapshots:
        made = [c.position for c in trajectory.commits if c.step == snapshot.forward - 1]
        assert sorted(snapshot.committed) == sorted(made)


def test_trajectory_confidence_is_untempered(golden: Model) -> None:
    out = dlm.generate(
        golden, [[5, 6, 7]], gen_length=6, temperature=0.7, decoder="left_to_right",
        return_trajectory=True, stop_at_eos=False,
    )  # fmt: skip
    trajectory = out.trajectory[0]  # type: ignore[index]
    for step, change in enumerate(trajectory.commits):
        row = torch.tensor([[5, 6, 7, *trajectory.canvases[step].tolist()]])
        logits = golden.raw_logits(row)[0, 3 + change.position]
        logits[511] = -math.inf
        expected = logits.softmax(-1)[change.token]
        assert change.confidence == pytest.approx(float(expected), rel=1e-4)


def test_infill_keeps_both_sides(golden: Model) -> None:
    text = [5, 511, 6, 7, 511, 511, 8, 9]
    out = dlm.infill(golden, text, block_length=2)
    filled = out.tokens[0]
    assert [filled[i] for i in (0, 2, 3, 6, 7)] == [5, 6, 7, 8, 9]
    assert 511 not in filled
    assert out.forwards == [3]
    other = dlm.infill(golden, [*text[:-1], 10], block_length=2).tokens[0]
    assert filled[:7] != other[:7], "the right side must matter"


def test_infill_reads_blanks_in_text(talker: Model) -> None:
    out = dlm.infill(talker, "Sudoku: 12[MASK]4[MASK:3]1", seed=1)
    tokenizer = talker.tokenizer
    assert tokenizer is not None
    left, middle, right = tokenizer("Sudoku: 12")["input_ids"], tokenizer("4")["input_ids"], [
        *tokenizer("1")["input_ids"]
    ]  # fmt: skip
    row = out.tokens[0]
    assert row[: len(left)] == left
    assert row[len(left) + 1 : len(left) + 2] == middle
    assert row[-1:] == right
    assert len(row) == len(left) + 1 + 1 + 3 + 1
    assert tokenizer.mask_token_id not in row


def test_prompts_of_every_kind(talker: Model) -> None:
    tokenizer = talker.tokenizer
    assert tokenizer is not None
    message = [{"role": "user", "content": "Sudoku: 12"}]
    chat: Any = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_dict=False
    )
    options: dict[str, Any] = {"gen_length": 6}
    ids = dlm.generate(talker, [chat], **options)
    assert dlm.generate(talker, message, **options) == ids
    assert dlm.generate(talker, [message], **options) == ids
    text = dlm.generate(talker, "Sudoku: 12", **options)
    assert dlm.generate(talker, ["Sudoku: 12"], **options) == text
    assert dlm.generate(talker, tokenizer("Sudoku: 12")["input_ids"], **options) == text
    assert isinstance(text.texts, list)


def test_text_ends_at_the_first_stop_token(talker: Model) -> None:
    from dlm.prompts import decode_text

    tokenizer = talker.tokenizer
    assert tokenizer is not None
    word = tokenizer("apples")["input_ids"]
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    assert set(stops) == set(talker.spec.stop_ids)
    for stop in stops:
        assert decode_text(talker, [*word, stop, *word]) == "apples"


def test_without_a_tokenizer_there_is_no_text(golden: Model) -> None:
    assert dlm.generate(golden, [[5]], gen_length=2).texts is None
    assert next(iter(dlm.stream(golden, [5], gen_length=2))).text is None


def test_tokens_per_forward(golden: Model) -> None:
    out = dlm.generate(golden, [[5], [6]], gen_length=12, steps=3, stop_at_eos=False,
                       block_length=None)  # fmt: skip
    assert out.forwards == [3, 3]
    assert out.tokens_per_forward == 4.0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"decoder": "low_confidense"}, "unknown decoder 'low_confidense'. Did you mean 'low_conf"),
    ({"decoder_options": {"threshhold": 1}, "decoder": "threshold"}, "Did you mean 'threshold'"),
    ({"decoder_options": {"threshold": "high"}, "decoder": "threshold"}, "threshold must be"),
    ({"decoder_options": {"threshold": math.nan}, "decoder": "threshold"}, "threshold must be"),
    ({"decoder_options": {"threshold": 0.5}, "decoder": Threshold()}, "decoder_options go with"),
    ({"gen_length": 0}, "gen_length must be an int >= 1, got 0"),
    ({"gen_length": 8.0}, "gen_length must be an int >= 1, got 8.0"),
    ({"gen_length": True}, "gen_length must be an int >= 1, got True"),
    ({"gen_length": 255}, "256 positions, got 257"),
    ({"block_length": 0}, "block_length must be an int >= 1, got 0"),
    ({"block_length": 1.5}, "block_length must be an int >= 1, got 1.5"),
    ({"steps": 0}, "steps must be an int >= 1, got 0"),
    ({"steps": "8"}, "steps must be an int >= 1, got '8'"),
    ({"temperature": math.nan}, "temperature must be a finite number"),
    ({"temperature": -0.1}, "temperature must be a finite number"),
    ({"temperature": "hot"}, "temperature must be a finite number"),
    ({"top_k": 0}, "top_k must be an int >= 1, got 0"),
    ({"top_k": 2.0}, "top_k must be an int >= 1, got 2.0"),
    ({"top_p": 0.0}, "top_p must be above 0, got 0.0"),
    ({"top_p": 1.1}, "top_p must be a finite number"),
    ({"min_p": 1.1}, "min_p must be a finite number"),
    ({"cfg_scale": math.inf}, "cfg_scale must be a finite number"),
    ({"cfg_scale": 1e38}, "cfg_scale must be a finite number"),
    ({"gen_length": 10**30}, "gen_length must be an int <= 2147483647"),
    ({"cache": "dual", "refresh_every": 10**30}, "refresh_every must be an int <= 2147483647"),
    ({"decoder_options": {1: 2}}, "decoder_options must map names to values"),
    ({"cache": "dul"}, "unknown cache 'dul'"),
    ({"seed": 1.0}, "seed must be an int"),
    ({"seed": 1 << 64}, "seed must be an int <= 18446744073709551615"),
    ({"row_keys": [1, 2]}, "row_keys must hold one int for each of the 1 prompts, got 2"),
    ({"row_keys": ["a"]}, "row_keys must be an int"),
    ({"suppress_tokens": [512]}, "suppress_tokens must be an int <= 511, got 512"),
    ({"decoder": None}, "decoder must be a name or a decoder instance, got None"),
    ({"decoder": Threshold}, "decoder must be a name or a decoder instance"),
    ({"decoder_options": [1], "decoder": "threshold"}, "decoder_options must map names"),
    ({"cache": None}, "cache must be one of dual, none, prefix, got None"),
    ({"row_keys": 1}, "row_keys must be a sequence of ints, got 1"),
    ({"suppress_tokens": 5}, "suppress_tokens must be a sequence of ints, got 5"),
    ({"suppress_tokens": range(511)}, "must leave a token to sample"),
    ({"suppress_tokens": range(1, 511), "begin_suppress_tokens": [0]}, "must leave a token"),
    ({"stop_at_eos": "no"}, "stop_at_eos must be True or False, got 'no'"),
    ({"confidence_eos_eot_inf": 1}, "confidence_eos_eot_inf must be True or False, got 1"),
    ({"confidence_eos_eot_inf": True, "decoder": "random"}, "reads none of them"),
    ({"confidence_eos_eot_inf": True, "decoder": "left_to_right"}, "reads none of them"),
    ({"gen_length": 2**31 - 1}, "256 positions, got 2147483649"),
    ({"steps": 10**20}, "steps must be an int <= 2147483647"),
    ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens must be an int >= 0, got -1"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[f"{o}"[:60] for o, _ in BAD])
def test_bad_options(golden: Model, options: dict[str, Any], message: str) -> None:
    options = {"gen_length": 8} | options
    with pytest.raises(ValueError, match=message):
        dlm.generate(golden, [[1, 2]], **options)
    with pytest.raises(ValueError, match=message):
        dlm.stream(golden, [1, 2], **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "non-empty list"),
        (None, "prompts must be a text"),
        (torch.tensor(1), "prompts must be a text"),
        ([None], "must be a sequence of ints, got None"),
        (b"ab", "must be a sequence of ints"),
        ([[]], "^a prompt must hold at least one token"),
        ([[1], []], r"^prompt 1: a prompt must hold at least one token, got \[\]"),
        ([1] * 511, "^prompt and generation must fit the model's 256 positions, got 513 tokens"),
        ([[1], [1] * 511, [2]], "^prompt 1 and generation must fit .* got 513 tokens"),
        ([[1, 2.0]], "token ids must be an int >= 0, got 2.0"),
        ([[1, 512]], "below the vocabulary size 512, got 512"),
        ([1.0], "token ids must be an int >= 0, got 1.0"),
        ([1, "a"], "token ids must be an int >= 0, got 'a'"),
        ([[1], 2], "must be a sequence of ints, got 2"),
        ([torch.tensor([1.0])], "token ids must be an int >= 0, got 1.0"),
        (list(torch.tensor([1, 2])), r"must be a sequence of ints, got tensor\(1\)"),
        ([{1, 2}], "must be a sequence of ints, got {1, 2}"),
        ([[1, 511]], "holds the mask id 511: use dlm.infill"),
        ("text", "needs a tokenizer"),
        ([{"role": "user", "content": "hi"}], "needs a tokenizer"),
    ],
)
def test_bad_prompts(golden: Model, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dlm.generate(golden, prompt, gen_length=2)


def test_bad_infills(golden: Model, talker: Model) -> None:
    with pytest.raises(ValueError, match="no blank"):
        dlm.infill(golden, [1, 2])
    with pytest.raises(ValueError, match="no blank"):
        dlm.infill(talker, "nothing missing")
    with pytest.raises(ValueError, match=r"text 1 has no blank: .* got 'whole'"):
        dlm.infill(talker, ["a [MASK]", "whole"])
    with pytest.raises(ValueError, match="gen_length is for generate"):
        dlm.infill(golden, [1, 511], gen_length=4)
    with pytest.raises(ValueError, match="Did you mean 'temperature'"):
        dlm.infill(golden, [1, 511], temprature=1.0)
    with pytest.raises(ValueError, match="non-empty"):
        dlm.infill(golden, [])
    with pytest.raises(ValueError, match="length of a blank must be an int >= 1, got 0"):
        dlm.infill(talker, "a [MASK:0] b")
    most = talker.spec.max_length
    for text, told in (
        (f"[MASK:{most - 1}] [MASK:{2:030}]", f"{most} positions, got {most + 1} tokens"),
        ("[MASK:300000000]", "got 300000000 tokens"),  # more than there is memory for
        (f"[MASK:{'9' * 5000}]", "the length of a blank must be an int <= 2147483647"),
    ):
        with pytest.raises(ValueError, match=told):
            dlm.infill(talker, text)
    with pytest.raises(ValueError, match="return_trajectory is for generate"):
        dlm.stream(golden, [1], gen_length=2, return_trajectory=True)
    with pytest.raises(ValueError, match="texts role and content"):
        dlm.generate(talker, [{"role": "user"}], gen_length=2)
    with pytest.raises(ValueError, match="stream takes one prompt"):
        dlm.stream(golden, [[1], [2]], gen_length=2)  # type: ignore[arg-type]


def test_a_text_and_a_number_are_no_prompts(talker: Model) -> None:
    with pytest.raises(ValueError, match="must be a sequence of ints, got 1"):
        dlm.generate(talker, ["a", 1], gen_length=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "more"),
    [
        (dlm.generate, ()),
        (dlm.stream, ()),
        (dlm.infill, ()),
        (dlm.log_likelihood, ([2],)),
        (dlm.encode_prompts, ()),
        (dlm.encode_infill, ("b", 1)),
    ],
)
def test_the_name_of_a_model_is_none(call: Callable[..., Any], more: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"model must be what dlm.load gave, .* got 'tiny'"):
        call("tiny", [1], *more)


def test_empty_text_is_refused(talker: Model) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        dlm.generate(talker, "", gen_length=2)


def test_filters_reach_the_sampler(golden: Model) -> None:
    options: dict[str, Any] = {"gen_length": 12, "stop_at_eos": False}
    greedy = dlm.generate(golden, [[5, 6]], decoder="left_to_right", **options).tokens
    options |= {"decoder": "left_to_right", "temperature": 5.0}
    assert dlm.generate(golden, [[5, 6]], top_k=1, **options).tokens == greedy
    assert dlm.generate(golden, [[5, 6]], top_p=1e-6, **options).tokens == greedy
    assert dlm.generate(golden, [[5, 6]], min_p=1, **options).tokens == greedy
    free = dlm.generate(golden, [[5, 6]], min_p=0, **options).tokens
    assert free == dlm.generate(golden, [[5, 6]], **options).tokens != greedy


def test_infill_texts_are_whole(talker: Model) -> None:
    text = "<|eot_id|>one [MASK:2] two"
    out = dlm.infill(talker, text, suppress_tokens=range(6, 768))
    assert out.texts == ["one  two"], "blanks that drew special tokens leave the given text"


def test_infill_that_stops_keeps_what_is_given(toy: Toy) -> None:
    table = torch.zeros(97, 8)
    table[:, 6] = 9.0
    row = [1, 6, 7, 7, 2, 7, 3]
    out = dlm.infill(toy(table), row, stop_at_eos=True, block_length=1)
    assert out.tokens == [[1, 6, 6, 6, 2, 6, 3]]
    assert out.forwards == [1]
    assert out.decoded == [1]


def test_filling_behind_a_stop_is_not_decoding(toy: Toy) -> None:
    table = torch.zeros(97, 8)
    table[:, 6] = 9.0
    out = dlm.generate(toy(table), [[1]], gen_length=100, block_length=1)
    assert out.forwards == out.decoded == [1]
    assert out.tokens_per_forward == 1.0


def test_guided_infill_blinds_both_sides(golden: Model) -> None:
    one = dlm.infill(golden, [5, 511, 511, 9], cfg_scale=-1.0)
    other = dlm.infill(golden, [6, 511, 511, 8], cfg_scale=-1.0)
    assert one.tokens[0][1:3] == other.tokens[0][1:3]


def test_snapshot_text_ends_at_the_first_mask(talker: Model) -> None:
    from dlm.prompts import decode_text

    for snapshot in dlm.stream(talker, "a", gen_length=8, seed=2, temperature=1.0):
        mask = talker.spec.mask_id
        end = snapshot.tokens.index(mask) if mask in snapshot.tokens else None
        assert snapshot.text == decode_text(talker, snapshot.tokens[:end])


def test_numpy_numbers_are_numbers(golden: Model) -> None:
    import numpy as np

    plain = dlm.generate(golden, [[5]], gen_length=4, temperature=0.5)
    options: dict[str, Any] = {"gen_length": np.int64(4), "temperature": np.float32(0.5)}
    for prompt in ([[np.int64(5)]], [np.int64(5)], list(np.array([5]))):
        assert plain.tokens == dlm.generate(golden, prompt, **options).tokens  # type: ignore[arg-type]
    blanks: Any = list(np.array([5, *[511] * 4]))
    assert dlm.infill(golden, blanks).tokens[0][:1] == [5]
