"""Bodies of OpenAI's endpoints: what they come to, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import dlm
from dlm.decoders import DECODERS
from dlm.generation import finish
from dlm.job import make_job
from dlm.models.model import Model
from dlm.prompts import encode_prompts
from dlm.serving.names import CHAT, COMPLETION, OPTIONS, UNSUPPORTED
from dlm.serving.protocol import DEFAULTS, Asked, UnknownModel, check_defaults, read_request
from dlm.settings import Settings

MESSAGES = [{"role": "user", "content": "Compute: 60/5"}]
SCHEDULE = Path(dlm.__file__).parent / "assets" / "schedules" / "arithmetic-4.json"


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model, whose tokenizer has a chat template."""
    return dlm.load()


Ask = Callable[..., Asked]


@pytest.fixture(scope="module")
def ask(tiny: Model) -> Ask:
    """What a body of some fields asks of the built-in model."""

    def read(defaults: Mapping[str, Any] | None = None, **body: Any) -> Asked:
        chat = "messages" in body
        if not chat:
            body.setdefault("prompt", "1+1")
        return raw(json.dumps(body).encode(), chat, defaults)

    def raw(data: bytes, chat: bool, defaults: Mapping[str, Any] | None) -> Asked:
        usual = {"gen_length": 16, "seed": 0}
        return read_request(data, chat=chat, model=tiny, name="m", defaults=defaults or usual)

    return read


def body_refused(model: Model, data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read_request(data, chat=False, model=model, name="m", defaults={})


def test_every_option_of_a_generation_has_its_field_or_its_reason() -> None:
    settings = {field.name for field in fields(Settings) if field.init}
    returned = {"return_trajectory", "return_order", "return_top_tokens"}
    elsewhere = {"gen_length", "row_keys", "constraint", "stop", *returned}
    assert settings == {*OPTIONS, *elsewhere}
    assert set(DEFAULTS) == settings - {"row_keys", "constraint", "stop", *returned}
    assert not set(UNSUPPORTED) & {*CHAT, *COMPLETION}


def test_what_is_served_is_what_generate_gives(tiny: Model, ask: Ask) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "block_length": 8, "min_p": 0.1}
    asked = ask(prompt=["2+2=", "60/5="], n=2, max_tokens=8, **options)
    request = asked.request
    job = make_job(tiny, request.rows, request.spans, request.settings)
    prompts = ["2+2=", "2+2=", "60/5=", "60/5="]
    expected = dlm.generate(tiny, prompts, gen_length=8, **options)
    assert finish(job).tokens == expected.tokens
    assert len({tuple(tokens) for tokens in expected.tokens}) > 2
    assert asked.prompt_tokens == sum(map(len, encode_prompts(tiny, ["2+2=", "60/5="])))


def test_a_chat_is_what_generate_makes_of_it(tiny: Model, ask: Ask) -> None:
    asked = ask(messages=MESSAGES, max_completion_tokens=4)
    (prompt,) = encode_prompts(tiny, MESSAGES)
    assert asked.request.rows == [[*prompt, *[tiny.spec.mask_id] * 4]]
    assert asked.request.spans == [(len(prompt), len(prompt) + 4)]
    assert asked.chat
    assert not asked.request.follow
    parts = [{"type": "text", "text": "Compute: "}, {"type": "text", "text": "60/5"}]
    again = ask(messages=[{"role": "user", "content": parts, "tool_calls": None}], max_tokens=4)
    assert again.request.rows == asked.request.rows


def test_a_chat_has_a_key_for_each_of_its_choices(ask: Ask) -> None:
    asked = ask(messages=[*MESSAGES, *MESSAGES], n=2, max_tokens=4)
    assert asked.request.settings.row_keys == [0, 1]
    assert len(asked.request.rows) == 2


def test_what_closes_every_row_is_put_behind(tiny: Model) -> None:
    model = replace(tiny, spec=replace(tiny.spec, suffix=(4,)))
    data = b'{"prompt": [7, 8, 4], "max_tokens": 2}'
    asked = read_request(data, chat=False, model=model, name="m", defaults={})
    assert asked.request.rows == [[7, 8, 5, 5, 4]]
    assert asked.request.spans == [(2, 4)]
    spec = replace(model.spec, max_length=4)
    with pytest.raises(ValueError, match="4 positions, got 5 tokens"):
        read_request(data, chat=False, model=replace(model, spec=spec), name="m", defaults={})


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ([7, 8], [[7, 8]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
        ("7", ["7"]),
        (["7", "8+"], ["7", "8+"]),
    ],
)
def test_every_form_of_a_prompt(tiny: Model, ask: Ask, prompt: Any, rows: list[Any]) -> None:
    asked = ask(prompt=prompt, max_tokens=1)
    assert [row[:-1] for row in asked.request.rows] == encode_prompts(tiny, rows)


@pytest.mark.parametrize(
    "prompt",
    [
        5, True, {}, [], [[]], ["a", 5], [5, "a"], [["a"]], [[7], "a"], [True], [7.5], [-1],
        MESSAGES, [MESSAGES], [7, None],
    ],
)  # fmt: skip
def test_prompts_that_are_none(ask: Ask, prompt: Any) -> None:
    with pytest.raises(ValueError, match="prompt must be"):
        ask(prompt=prompt)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": None}, "prompt must be there"),
        ({"prompt": [768]}, "below the vocabulary size 768"),
        ({"prompt": [5]}, "prompt must not hold the mask .*, id 5: it stands for what is"),
        ({"prompt": "\ud800"}, "prompt must be text that UTF-8 can hold"),
        ({"prompt": ["a"] * 1025}, "at most 1024, got 1025 times 1"),
        ({"prompt": ["a"] * 9, "n": 128}, "at most 1024, got 9 times 128"),
        ({"n": 0}, "n must be an int >= 1, got 0"),
        ({"n": 129}, "n must be an int <= 128, got 129"),
        ({"n": True}, "n must be an int"),
        ({"max_tokens": 0}, "max_tokens must be an int >= 1, got 0"),
        ({"max_tokens": "4"}, "max_tokens must be an int >= 1, got '4'"),
        ({"max_tokens": 10**9}, "must fit the model's 512 positions"),
        ({"max_completion_tokens": 4}, "unknown field 'max_completion_tokens'.*max_tokens"),
        ({"gen_length": 4}, "unknown field 'gen_length': max_tokens"),
        ({"temprature": 1}, "unknown field 'temprature'. Did you mean 'temperature'"),
        ({"row_keys": [1]}, "unknown field 'row_keys'"),
        ({"temperature": -1}, "temperature must be a finite number >= 0, got -1"),
        ({"temperature": "hot"}, "temperature must be a finite number >= 0, got 'hot'"),
        ({"top_p": 2}, "top_p must be"),
        ({"min_p": 2}, "min_p must be"),
        ({"top_k": -2}, "top_k must be an int >= 1"),
        ({"top_k": False}, "top_k must be an int >= 1"),
        ({"top_k": 0.0}, "top_k must be an int >= 1"),
        ({"suffix": 5}, "suffix must be a text, got 5"),
        ({"suffix": "\ud800"}, "suffix must be text that UTF-8 can hold"),
        ({"seed": 1.5}, "seed must be an int"),
        ({"cache": "big"}, "unknown cache 'big'"),
        ({"refresh_every": 4}, "refresh_every goes with cache"),
        ({"steps": 1 << 15}, "steps must be an int <= 16384"),
        ({"decoder": "treshold"}, "unknown decoder 'treshold'. Did you mean 'threshold'"),
        ({"decoder": ["threshold"]}, "decoder must be a name"),
        ({"decoder": {}}, "decoder must be a name"),
        ({"decoder_options": [1]}, "decoder_options must map"),
        ({"decoder_options": {"a": 1}}, "unknown option of low_confidence 'a'"),
        ({"decoder": "credit", "decoder_options": {"slots": 1 << 30}}, "slots of decoder_options"),
        ({"decoder": "wino", "cache": "dual"}, "cache must be 'none' or"),
        ({"suppress_tokens": [768]}, "suppress_tokens must be an int <= 767"),
        ({"suppress_tokens": "5"}, "suppress_tokens must be a sequence"),
        ({"suppress_tokens": [9] * 769}, "at most one entry for each of the 768 ids of the voc"),
        (
            {"decoder_options": {"frequencies": [1.0] * 769}},
            "frequencies of decoder_options must ho",
        ),
        ({"begin_suppress_tokens": [9] * 769}, "at most one entry for each of the 768 ids"),
        ({"stop_at_eos": "no"}, "stop_at_eos must be True or False"),
        ({"stop": ""}, "stop must be a text or texts"),
        ({"stop": ["a", ""]}, "stop must be a text or texts"),
        ({"stop": 5}, "stop must be a text or texts"),
        ({"stop": ["a"] * 17}, "stop must be at most 16 texts, got 17"),
        ({"stop": "a" * 1025}, "at most 1024 characters, got 1025"),
        ({"stop": "\udc00"}, "stop must be text that UTF-8 can hold"),
        ({"stream": 1}, "stream must be True or False, got 1"),
        ({"stream_options": {"include_usage": True}}, "stream_options go with stream"),
        ({"stream": True, "stream_options": True}, "stream_options must be an object"),
        (
            {"stream": True, "stream_options": {"include_usag": True}},
            "Did you mean 'include_usage'",
        ),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage must",
        ),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "continuous_usage_stats is not supported, got True: leave it out",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "include_obfuscation is not supported, got True: leave it out",
        ),
        ({"chat_template_kwargs": {}}, "unknown field 'chat_template_kwargs'"),
    ],
)
def test_what_a_completion_is_refused_for(ask: Ask, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(**body)


def test_null_says_nothing_but_of_blocks_and_steps(ask: Ask) -> None:
    defaults = {"gen_length": 16, "block_length": 8, "temperature": 0.5, "seed": 4, "steps": 3}
    known = {*COMPLETION, *UNSUPPORTED} - {"prompt", "block_length", "steps"}
    nulls = dict.fromkeys(known | {"guided_json", "truncate_prompt_tokens", "what"})
    assert ask(defaults, **nulls) == ask(defaults)
    for name in ("block_length", "steps"):
        null: dict[str, Any] = {name: None}
        made = ask(defaults, **null).request.settings
        assert made == replace(ask(defaults).request.settings, **null)


def test_fields_override_the_server(ask: Ask) -> None:
    defaults = {"gen_length": 16, "temperature": 0.5, "top_k": 5, "stop_at_eos": False, "seed": 2}
    made = ask(defaults, temperature=0, max_tokens=3).request.settings
    assert made == Settings(
        gen_length=3, temperature=0, top_k=5, stop_at_eos=False, seed=2, row_keys=made.row_keys
    )


@pytest.mark.parametrize(
    ("body", "decoder", "options"),
    [
        ({}, "threshold", {"threshold": 0.5}),
        ({"decoder": "threshold"}, "threshold", {"threshold": 0.5}),
        ({"decoder": "low_confidence"}, "low_confidence", None),
        ({"decoder_options": {"threshold": 0.7}}, "threshold", {"threshold": 0.7}),
        ({"decoder": "factor", "decoder_options": {"factor": 2}}, "factor", {"factor": 2}),
    ],
)
def test_options_belong_to_their_decoder(
    ask: Ask, body: dict[str, Any], decoder: str, options: Any
) -> None:
    made = ask({"decoder": "threshold", "decoder_options": {"threshold": 0.5}}, **body)
    assert made.request.settings.decoder == decoder
    assert made.request.settings.decoder_options == options


def test_another_cache_is_refreshed_as_it_says(ask: Ask) -> None:
    defaults = {"gen_length": 16, "cache": "dual", "refresh_every": 4, "refresh_around": 8}
    assert ask(defaults).request.settings.refresh_every == 4
    assert ask(defaults).request.settings.refresh_around == 8
    assert ask(defaults, cache="dual").request.settings.refresh_every == 4
    assert ask(defaults, cache="dual").request.settings.refresh_around == 8
    assert ask(defaults, cache="none").request.settings.refresh_every is None
    assert ask(defaults, cache="prefix").request.settings.refresh_around == 0
    defaults["refresh_prompt_every"] = 64
    assert ask(defaults).request.settings.refresh_prompt_every == 64
    assert ask(defaults, cache="prefix").request.settings.refresh_prompt_every is None
    defaults["refresh_decoded_every"] = 9
    assert ask(defaults).request.settings.refresh_decoded_every == 9
    assert ask(defaults, decoder="ssd").request.settings.refresh_decoded_every is None
    assert ask(defaults, decoder="ssd").request.settings.refresh_prompt_every == 64
    assert ask(defaults, cache="prefix", refresh_every=2).request.settings.refresh_every == 2


def test_one_of_two_that_do_not_go_together_takes_the_place_of_the_other(ask: Ask) -> None:
    kept = {"gen_length": 16, "cache": "dual", "refresh_every": 4, "refresh_answer_every": 8}
    settings = ask(kept, suffix_window=2).request.settings
    assert (settings.suffix_window, settings.refresh_answer_every) == (2, None)
    assert ask(kept, suffix_window=None).request.settings.refresh_answer_every == 8
    settings = ask({"suffix_window": 3}, cache="dual", refresh_answer_every=2).request.settings
    assert (settings.suffix_window, settings.refresh_answer_every) == (None, 2)
    with pytest.raises(ValueError, match=r"suffix_window .* with refresh_answer_every"):
        ask(cache="dual", refresh_answer_every=2, suffix_window=4)


def test_a_request_names_no_file(ask: Ask) -> None:
    path = str(SCHEDULE)
    for decoder, option in [("schedule", "path"), ("pc_sampler", "frequencies")]:
        with pytest.raises(ValueError, match=f"{option} of {decoder} must name no file"):
            ask(decoder=decoder, decoder_options={option: path})
        with pytest.raises(ValueError, match=f"{option} of {decoder} must name no file"):
            ask({"decoder": decoder}, decoder_options={option: "/etc/hostname"})
    started = {"decoder": "schedule", "decoder_options": {"path": path}}
    assert ask(started).request.settings.decoder_options == {"path": path}
    with pytest.raises(ValueError, match="must name no file"):
        ask(started, decoder_options={"path": path})
    assert ask(decoder="schedule", decoder_options={"path": None})
    assert ask(decoder="pc_sampler", decoder_options={"frequencies": "model"})
    assert ask(decoder="pc_sampler", decoder_options={"frequencies": [1 / 768] * 768})


def test_no_other_option_of_a_decoder_is_a_file() -> None:
    # A path that is typed as a text alone would pass the check of requests.
    texts = {
        (name, field.name)
        for name, decoder in DECODERS.items()
        for field in fields(decoder)  # type: ignore[arg-type]
        if str in {hint := get_type_hints(decoder)[field.name], *get_args(hint)}
    }
    files = {("schedule", "path"), ("pc_sampler", "frequencies")}
    names = {"alpha", "alg", "order", "weight", "position_origin", "preset", "variant", "score"}
    assert {name for _, name in texts - files} <= names


def test_the_rows_of_a_request_have_a_bound_together(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlm.serving.protocol.MOST_TOKENS", 12)
    data = b'{"prompt": [[7], [8, 9]], "n": 2, "max_tokens": %d}'
    read_request(data % 1, chat=False, model=tiny, name="m", defaults={})
    body_refused(tiny, data % 2, "must hold at most 12 tokens, got 14")


def test_only_the_served_model_answers(ask: Ask) -> None:
    assert ask(model="m").request == ask().request
    for name in ("n", 5):
        with pytest.raises(UnknownModel, match="model must be 'm', which is served here"):
            ask(model=name)


def test_streams_and_stop_texts_follow(ask: Ask) -> None:
    assert not ask().request.follow
    assert not ask(stop=[]).request.follow
    assert ask(stop="\n").request.follow
    assert ask(stop="\n").stop == ("\n",)
    assert ask(stop=["a", "b"]).stop == ("a", "b")
    streamed = ask(stream=True, stream_options={"include_usage": True})
    assert (streamed.request.follow, streamed.stream, streamed.include_usage) == (True, True, True)
    assert not ask(stream=True).include_usage
    assert not ask(stream=True, stream_options={}).include_usage


def test_a_stop_text_needs_a_tokenizer(tiny: Model) -> None:
    model = replace(tiny, tokenizer=None)
    data = b'{"prompt": [7], "max_tokens": 1, "stop": "a"}'
    body_refused(model, data, "stop needs a tokenizer")


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"row_keys": [1]}, "unknown option of a server 'row_keys'"),
        ({"return_order": True}, "unknown option of a server"),
        ({"gen_lenght": 1}, "Did you mean 'gen_length'"),
        ({"temperature": -1}, "temperature must be"),
        ({"suppress_tokens": [768]}, "suppress_tokens must be an int <= 767"),
    ],
)
def test_a_server_is_not_started_with(tiny: Model, defaults: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_defaults(defaults, tiny)


def test_reading_bodies_needs_no_server() -> None:
    code = "import sys, dlm.serving.protocol, dlm.reading; print('starlette' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_seed_is_drawn_where_nobody_names_one(tiny: Model) -> None:
    bodies = [b'{"prompt": "a"}'] * 3 + [b'{"prompt": "a", "seed": 7}']
    seeds = [
        read_request(body, chat=False, model=tiny, name="m", defaults={}).request.settings.seed
        for body in bodies
    ]
    assert len({*seeds}) == 4
    assert seeds[3] == 7
    assert all(0 <= seed < 1 << 53 for seed in seeds)
