"""`generate`, pipelines and saved folders through transformers, against `dlm.generate`."""

import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

import dlm
from dlm import DiffusionGenerationConfig, DiffusionGenerationOutput
from dlm.decoders import make
from dlm.models.loading import silence
from dlm.models.model import Model

PROMPTS = [[5, 6], [17, 3, 300, 44, 9], [8, 8, 8]]
PAD = 508
AUTO = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")


def load(folder: Path, auto: str = "AutoModelForMaskedLM", **options: Any) -> Any:
    with silence():
        return getattr(transformers, auto).from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def network(golden_folder: Path) -> Any:
    return load(golden_folder)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts as a batch, padded on a side."""
    width = max(map(len, PROMPTS))
    pads = [[PAD] * (width - len(row)) for row in PROMPTS]
    ids = [p + r if side == "left" else r + p for p, r in zip(pads, PROMPTS, strict=True)]
    ones = [[1] * len(row) for row in PROMPTS]
    zeros = [[0] * len(pad) for pad in pads]
    mask = [z + o if side == "left" else o + z for z, o in zip(zeros, ones, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("auto", AUTO)
def test_every_auto_class_generates(golden_folder: Path, golden: Model, auto: str) -> None:
    network = load(golden_folder, auto)
    assert network.can_generate()
    assert not network.model.can_generate(), "hidden states alone have no vocabulary"
    out = network.generate(torch.tensor(PROMPTS[1:2]), max_new_tokens=20)
    assert out[0, 5:].tolist() == dlm.generate(golden, PROMPTS[1], gen_length=20).tokens[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder": "saber", "decoder_options": {"n": 3}},
        {"decoder": "threshold", "cache": "dual", "block_length": 5},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 3, "steps": 7},
        {"decoder": make("wino"), "cfg_scale": 0.5},
    ],
    ids=["default", "saber", "dual", "sampled", "instance"],
)
def test_padded_batches_are_ragged_prompts(
    network: Any, golden: Model, side: str, options: dict[str, Any]
) -> None:
    ids, mask = padded(side)
    out = network.generate(ids, attention_mask=mask, max_new_tokens=20, **options)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    together = dlm.generate(golden, PROMPTS, gen_length=20, **options)
    assert out[:, ids.shape[1] :].tolist() == together.tokens
    for row, prompt in enumerate(PROMPTS):
        alone = network.generate(
            torch.tensor([prompt]), max_new_tokens=20, row_keys=[row], **options
        )
        assert alone[0, len(prompt) :].tolist() == together.tokens[row]


def test_output_object(network: Any, golden: Model) -> None:
    ids, mask = padded("left")
    out = network.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=20,
        return_dict_in_generate=True,
        return_trajectory=True,
        return_order=True,
        block_length=5,
        decoder="threshold",
        decoder_options={"threshold": 0.01},
    )
    same = dlm.generate(
        golden,
        PROMPTS,
        gen_length=20,
        return_trajectory=True,
        return_order=True,
        block_length=5,
        decoder="threshold",
        decoder_options={"threshold": 0.01},
    )
    assert isinstance(out, DiffusionGenerationOutput)
    assert out.sequences is not None
    assert out.forwards is not None
    assert out.tokens_per_forward is not None
    assert out.order is not None
    assert out.trajectory is not None
    assert out.sequences[:, 5:].tolist() == same.tokens
    assert out.forwards.tolist() == same.forwards
    rates = [d / f for d, f in zip(same.decoded, same.forwards, strict=True)]
    torch.testing.assert_close(out.tokens_per_forward, torch.tensor(rates))
    assert max(rates) > 1, "several tokens a forward, or the test shows nothing"
    assert out.order.tolist() == same.order
    assert [t.commits for t in out.trajectory] == [t.commits for t in same.trajectory or ()]
    plain = network.generate(ids, attention_mask=mask, max_new_tokens=20, decoder="threshold")
    assert isinstance(plain, torch.Tensor)


def test_stop_ids_and_padding_of_a_call(network: Any, golden: Model) -> None:
    given: dict[str, Any] = {"block_length": 4, "temperature": 1.0}
    row = dlm.generate(golden, PROMPTS[1], gen_length=20, **given).tokens[0]
    place = 6
    stop = row[place]
    assert stop not in row[:place]
    ids = torch.tensor(PROMPTS[1:2])
    options = {"max_new_tokens": 20, "eos_token_id": stop, **given}
    out = network.generate(ids, pad_token_id=77, **options)[0, 5:].tolist()
    assert out == [*row[: place + 1], *[77] * (19 - place)]
    out = network.generate(ids, **options, pad_token_id=None)[0, 5:].tolist()
    assert out == [*row[: place + 1], *[stop] * (19 - place)]
    out = network.generate(ids, **options, stop_at_eos=False)[0, 5:].tolist()
    assert out == row
    # The checkpoint's own value is not an override.
    out = network.generate(ids, max_new_tokens=20, eos_token_id=508, **given)
    assert out[0, 5:].tolist() == row


def test_layers_of_configuration(network: Any, golden: Model) -> None:
    ids = torch.tensor(PROMPTS[1:2])
    ours = DiffusionGenerationConfig(max_new_tokens=8, temperature=0.9, seed=5)
    plain = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=0.9)
    sampled = dlm.generate(golden, PROMPTS[1], gen_length=8, temperature=0.9, seed=5).tokens[0]
    best = dlm.generate(golden, PROMPTS[1], gen_length=8).tokens[0]
    assert sampled != best
    for config, options, expected in (
        (ours, {}, sampled),
        (plain, {"seed": 5}, sampled),
        (ours, {"do_sample": False}, best),
        (ours, {"temperature": 0.0}, best),
        (None, {"max_length": 13}, best),
        (ours, {"max_length": 9, "do_sample": False}, best[:4]),
    ):
        out = network.generate(ids, generation_config=config, **options)[0, 5:].tolist()
        if "max_length" not in options:
            assert out == expected
        assert len(out) == len(expected)
    assert (ours.max_new_tokens, ours.do_sample) == (8, None), "a call changes no configuration"
    with pytest.raises(ValueError, match="generation_config must be a Diffusion"):
        network.generate(ids, generation_config={"seed": 1})


def test_several_sequences_a_prompt(network: Any, golden: Model) -> None:
    ids, mask = padded("left")
    out = network.generate(
        ids, attention_mask=mask, max_new_tokens=6, num_return_sequences=2, do_sample=True
    )
    rows = [row for row in PROMPTS for _ in range(2)]
    same = dlm.generate(golden, rows, gen_length=6, temperature=1.0).tokens
    assert out[:, 5:].tolist() == same
    assert torch.equal(out[::2, :5], ids)
    assert same[0] != same[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3}, "num_beams cannot work with masked diffusion"),
        ({"logits_processor": [print]}, "logits_processor cannot work"),
        ({"assistant_model": object()}, "assistant_model cannot work"),
        ({"max_new_token": 3}, "unknown option 'max_new_token'. Did you mean 'max_new_tokens'"),
        ({"eos_token_id": 511}, "eos_token_id must not be the mask id"),
        ({"eos_token_id": 600}, "eos_token_id must be an int <= 511"),
        ({"pad_token_id": -1}, "pad_token_id must be an int >= 0"),
        ({"mask_token_id": 508}, "stop ids must be ids below"),
        ({"max_new_tokens": 300}, "must fit the model's 256 positions, got 302"),
        ({"streamer": object()}, "streamer must have put and end"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refusals(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.generate(torch.tensor([[1, 2]]), **({"max_new_tokens": 3} | options))


def test_prompts_with_masks_are_for_infill(network: Any) -> None:
    with pytest.raises(ValueError, match=r"use dlm\.infill"):
        network.generate(torch.tensor([[1, 511]]), max_new_tokens=2)


@pytest.fixture(scope="module")
def tiny() -> Model:
    with silence():
        return dlm.load()


@pytest.fixture(scope="module")
def saved(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, saved by transformers."""
    folder = tmp_path_factory.mktemp("saved")
    assert tiny.tokenizer is not None
    with silence():
        tiny.network.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


QUESTIONS = ["Compute: 60/5, 14*7, 30+14, 50/5", "Countdown: 56,26,1,30"]
CHAT = [[{"role": "user", "content": question}] for question in QUESTIONS]
OPTIONS: dict[str, Any] = {"decoder": "saber", "block_length": 8}


@pytest.fixture(scope="module", params=["network", "path"])
def pipe(request: pytest.FixtureRequest, tiny: Model, saved: Path) -> Any:
    with silence():
        if request.param == "path":
            return pipeline("text-generation", model=str(saved))
        tokenizer: Any = tiny.tokenizer
        network = load(saved, "AutoModelForCausalLM")
        return pipeline("text-generation", model=network, tokenizer=tokenizer)


def text_of(tiny: Model, prompt: Any) -> str:
    texts = dlm.generate(tiny, prompt, gen_length=24, **OPTIONS).texts
    assert texts is not None
    return texts[0]


def test_pipeline_takes_chats(pipe: Any, tiny: Model) -> None:
    expected = [text_of(tiny, chat) for chat in CHAT]
    assert all(expected), "an empty answer would compare nothing"
    out = pipe(CHAT, max_new_tokens=24, batch_size=4, **OPTIONS)
    assert [one[0]["generated_text"][-1]["content"] for one in out] == expected
    (one,) = pipe(CHAT[0], max_new_tokens=24, **OPTIONS)
    assert one["generated_text"] == [*CHAT[0], {"role": "assistant", "content": expected[0]}]


def test_pipeline_takes_texts(pipe: Any, tiny: Model) -> None:
    tokenizer: Any = tiny.tokenizer
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in CHAT
    ]
    expected = [text_of(tiny, prompt) for prompt in prompts]
    out = pipe(prompts, max_new_tokens=24, batch_size=4, return_full_text=False, **OPTIONS)
    assert [one[0]["generated_text"] for one in out] == expected
    (one,) = pipe(prompts[0], max_new_tokens=24, **OPTIONS)
    assert one["generated_text"] == prompts[0] + expected[0]


def test_pipeline_options(pipe: Any, tiny: Model) -> None:
    def sampled(**options: Any) -> str:
        texts = dlm.generate(tiny, CHAT[0], gen_length=24, **options).texts
        assert texts is not None
        return texts[0]

    for options, expected in (
        ({}, sampled()),
        ({"temperature": 2.0, "seed": 4}, sampled(temperature=2.0, seed=4)),
        ({"do_sample": True, "temperature": 2.0}, sampled(temperature=2.0)),
        (
            {"generation_config": DiffusionGenerationConfig(max_new_tokens=24, decoder="random")},
            sampled(decoder="random"),
        ),
    ):
        given = options if "generation_config" in options else {"max_new_tokens": 24, **options}
        (one,) = pipe(CHAT[0], **given)
        assert one["generated_text"][-1]["content"] == expected
    with pytest.raises(ValueError, match="max_time cannot work"):
        pipe(CHAT[0], max_time=7.0)


def test_pipeline_keeps_a_configuration_of_its_own(saved: Path, tiny: Model) -> None:
    config = DiffusionGenerationConfig(max_new_tokens=24, **OPTIONS)
    with silence():
        pipe = pipeline("text-generation", model=str(saved), generation_config=config)
    (one,) = pipe(CHAT[0])
    assert one["generated_text"][-1]["content"] == text_of(tiny, CHAT[0])


@pytest.mark.parametrize("skip", [False, True], ids=["with prompt", "without"])
def test_transformers_streamers_follow(saved: Path, tiny: Model, skip: bool) -> None:
    tokenizer: Any = tiny.tokenizer
    ids = tokenizer.apply_chat_template(CHAT[0], add_generation_prompt=True, return_tensors="pt")
    network = load(saved)
    streamer = TextIteratorStreamer(tokenizer, skip, timeout=60, skip_special_tokens=True)
    thread = Thread(
        target=network.generate,
        kwargs={**ids, "streamer": streamer, "max_new_tokens": 24, **OPTIONS},
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    prompt = "" if skip else tokenizer.decode(ids["input_ids"][0], skip_special_tokens=True)
    assert text == prompt + text_of(tiny, CHAT[0])


def test_save_keeps_the_generation_config(saved: Path, tiny: Model, tmp_path: Path) -> None:
    network = load(saved)
    network.generation_config = DiffusionGenerationConfig(
        decoder="saber", decoder_options={"n": 3}, max_new_tokens=11, eos_token_id=[1, 4]
    )
    with silence():
        network.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.generation_config == network.generation_config
    ids = torch.tensor([[70, 71]])
    out = again.generate(ids)
    assert out.shape == (1, 13)
    assert torch.equal(out, network.generate(ids))


def test_loading_takes_a_configuration(saved: Path) -> None:
    config = GenerationConfig(max_new_tokens=3)
    network = load(saved, generation_config=config)
    assert isinstance(network.generation_config, DiffusionGenerationConfig)
    assert network.generate(torch.tensor([[70]])).shape == (1, 4)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_corrupt_generation_config_is_told(saved: Path, tmp_path: Path, content: str) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"cannot read generation_config\.json"):
        load(tmp_path)


def test_options_a_checkpoint_brings_are_refused_by_generate_only(
    saved: Path, tmp_path: Path
) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05}))
    network = load(tmp_path)
    ids = torch.tensor([[70]])
    with pytest.raises(ValueError, match=r"repetition_penalty cannot work .* got 1\.05"):
        network.generate(ids, max_new_tokens=2)
    assert network.generate(ids, max_new_tokens=2, repetition_penalty=None).shape == (1, 3)
    with silence():
        assert dlm.generate(dlm.load(tmp_path), [[70]], gen_length=2).texts


def test_as_model_is_what_load_gives(golden_folder: Path, saved: Path, tiny: Model) -> None:
    model = dlm.as_model(load(saved))
    assert model.spec == tiny.spec
    assert dlm.generate(model, CHAT[0], gen_length=24, **OPTIONS).texts == [text_of(tiny, CHAT[0])]
    network = load(golden_folder)
    bare = dlm.as_model(network)
    assert bare.tokenizer is None
    assert bare.spec == dlm.load(golden_folder).spec
    assert dlm.as_model(network, mask_id=9).spec.mask_id == 9
    network.generation_config.mask_token_id = 10
    assert dlm.as_model(network).spec.mask_id == 10
    with pytest.raises(ValueError, match="got a TransformerModel"):
        dlm.as_model(network.model)


def test_stop_ids_that_only_the_tokenizer_knows(saved: Path) -> None:
    network = load(saved)
    assert network.generation_config.eos_token_id == 1
    for stops, expected in (
        (None, (1, 4)),
        (1, (1, 4)),
        ([1], (1, 4)),
        (4, (1, 4)),
        ([4, 1], (1, 4)),
        ([4, 6], (4, 6)),
    ):
        assert network.model_for({"eos_token_id": stops}, None).spec.stop_ids == expected


def test_a_tokenizer_that_went_away_is_told(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    network = load(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="give one as tokenizer"):
        network.generate(torch.tensor([[70]]), max_new_tokens=2)


def test_networks_made_from_a_configuration_generate(golden: Model) -> None:
    network = type(golden.network)(golden.network.config).eval()
    out = network.generate(None, bos_token_id=3, max_new_tokens=4)
    assert out.shape == (1, 5)
    assert out[0, 0] == 3
