"""What requests for text get: in order, up to their stop strings, whatever runs beside them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dlm
from dlm.models.loading import silence

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.model import CachingLM  # type: ignore[import-untyped]

from dlm.eval.lm_eval_model import DLM
from dlm.eval.lm_eval_requests import keys

Calls = list[dict[str, Any]]
GREEDY = {"do_sample": False, "max_gen_toks": 8, "until": []}
SAMPLED = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": []}
PROMPTS = ["Compute: 6*8", "a", "Sudoku: 3102200002100320", "Compute: 9*7, 5*4, 1+1", "b", "c d"]


@pytest.fixture(scope="module")
def built_in() -> Iterator[dlm.Model]:
    """The built-in model, loaded once for all the adapters here."""
    with silence():
        model = dlm.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlm, "load", lambda *_args, **_options: model)
        yield model


@pytest.fixture
def lm(built_in: dlm.Model) -> DLM:
    return DLM(batch_size=2)


def ask(context: str, gen_kwargs: Any, doc: int = 0, repeats: int | None = 1) -> Any:
    return Instance("generate_until", {}, (context, gen_kwargs), 0, ("task", doc, repeats))


@pytest.fixture
def plant(built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Replaces `dlm.generate_each` by a table from prompt to answer; hands over what is called."""

    def replace(answer: Callable[[str], str], most: int = 1000) -> Calls:
        calls: Calls = []
        tokenizer: Any = built_in.tokenizer
        encode, decode = tokenizer.encode, tokenizer.decode

        @functools.wraps(dlm.generate_each)
        def each(model: dlm.Model, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
            assert model is built_in
            calls.append({"prompts": [decode(row) for row in prompts], **options})
            if min(options["batch_size"], len(prompts)) > most:
                raise torch.OutOfMemoryError("too much")
            end = [model.spec.eos_id, *encode("not to be seen")]
            for place in reversed(range(len(prompts))):  # in any order
                tokens = [*encode(answer(decode(prompts[place]))), *end]
                yield place, SimpleNamespace(tokens=[tokens])

        monkeypatch.setattr(dlm, "generate_each", each)
        return calls

    return replace


def test_results_come_in_the_order_of_the_requests(lm: DLM, plant: Callable[..., Calls]) -> None:
    calls = plant(lambda prompt: f"<{prompt}> tail")
    requests = [ask(p, {"until": [" tail"]}, doc) for doc, p in enumerate(PROMPTS)]
    assert lm.generate_until(requests, disable_tqdm=True) == [f"<{p}>" for p in PROMPTS]
    assert [(len(call["prompts"]), call["batch_size"]) for call in calls] == [(6, 2)]
    assert {call["stop"] for call in calls} == {(" tail",)}


def test_each_request_has_its_own_stop_strings(lm: DLM, plant: Callable[..., Calls]) -> None:
    calls = plant(lambda _: "one two three")
    requests = [ask("p", {"until": until}) for until in (["two"], "three", [], ["\n"])]
    texts = lm.generate_until(requests, disable_tqdm=True)
    assert texts == ["one ", "one two ", "one two three", "one two three"]
    assert [call.get("stop") for call in calls] == [("two",), ("three",), None, ("\n",)]
    assert len({key for call in calls for key in call["row_keys"]}) == 1


def test_a_stop_string_may_be_a_special_token(lm: DLM, plant: Callable[..., Calls]) -> None:
    plant(lambda _: "one<|start_header_id|>two<|eot_id|>three")
    stops = [["<|start_header_id|>"], ["<|eot_id|>"], [], ["<|im_end|>"]]
    texts = lm.generate_until([ask("p", {"until": s}) for s in stops], disable_tqdm=True)
    assert texts == ["one", "onetwo", "onetwo", "onetwo"]


def test_equal_gen_kwargs_are_decoded_together(lm: DLM, plant: Callable[..., Calls]) -> None:
    calls = plant(lambda prompt: prompt)
    greedy = {"do_sample": False, "max_gen_toks": 8}
    warm = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 7, "max_gen_toks": 16}
    requests = [ask(p, (greedy, warm)[doc % 2], doc) for doc, p in enumerate(PROMPTS)]
    lm.batch_size = 8
    assert lm.generate_until(requests, disable_tqdm=True) == PROMPTS
    for call in calls:
        del call["row_keys"], call["batch_size"]
    assert sorted(calls[0].pop("prompts")) == sorted(PROMPTS[::2])
    assert sorted(calls[1].pop("prompts")) == sorted(PROMPTS[1::2])
    assert calls == [
        {"gen_length": 8, "temperature": 0.0},
        {"gen_length": 16, "temperature": 0.8, "top_p": 0.9, "top_k": 7},
    ]


def test_what_model_args_fix_tasks_do_not_change(
    built_in: dlm.Model, plant: Callable[..., Calls], caplog: pytest.LogCaptureFixture
) -> None:
    fixed = DLM(gen_length=10, temperature=0.5, decoder="threshold")
    calls = plant(lambda prompt: prompt)
    fixed.generate_until([ask("a", {**GREEDY, "top_p": 0.9})], disable_tqdm=True)
    assert calls[0]["gen_length"] == 10
    assert calls[0]["temperature"] == 0.5
    assert calls[0]["top_p"] == 0.9
    assert calls[0]["decoder"] == "threshold"
    assert "model_args fix gen_length=10: not 8" in caplog.text
    assert "model_args fix temperature=0.5: not 0.0" in caplog.text
    assert fixed.max_gen_toks == 10


def test_length_without_any_word_about_it(lm: DLM, plant: Callable[..., Calls]) -> None:
    calls = plant(lambda prompt: prompt)
    lm.generate_until([ask("a", {})], disable_tqdm=True)
    assert calls[0]["gen_length"] == lm.max_gen_toks == 256


def test_what_does_not_fit_memory_is_halved_and_stays_in_order(
    lm: DLM, plant: Callable[..., Calls]
) -> None:
    calls = plant(lambda prompt: prompt, most=2)
    lm.batch_size = 6
    requests = [ask(p, GREEDY, doc) for doc, p in enumerate(PROMPTS)]
    assert lm.generate_until(requests, disable_tqdm=True) == PROMPTS
    assert [call["batch_size"] for call in calls] == [6, 3, 1]
    plant(lambda prompt: prompt, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        lm.generate_until(requests, disable_tqdm=True)


def test_long_contexts_lose_their_beginning(
    lm: DLM, plant: Callable[..., Calls], caplog: pytest.LogCaptureFixture
) -> None:
    calls = plant(lambda _: "x")
    long = "Sudoku: 3102200002100320 " * 60
    lm.generate_until([ask(long, GREEDY), ask("short", GREEDY)], disable_tqdm=True)
    prompts = [lm.tok_encode(p) for p in calls[0]["prompts"]]
    assert len(prompts[0]) == 512 - 8
    assert prompts[0] == lm.tok_encode(long)[-504:]
    assert "1 of 2 contexts lost their beginning" in caplog.text


def test_a_length_with_no_room_for_a_context_is_refused_first(
    lm: DLM, plant: Callable[..., Calls]
) -> None:
    calls = plant(lambda _: "x")
    requests = [ask("a", GREEDY), ask("b", {"max_gen_toks": 512})]
    with pytest.raises(ValueError, match="must be below the model's 512 positions, got 512"):
        lm.generate_until(requests, disable_tqdm=True)
    assert calls == []


def test_an_empty_context_is_start_of_text(lm: DLM, plant: Callable[..., Calls]) -> None:
    calls = plant(lambda _: "x")
    lm.generate_until([ask("", GREEDY)], disable_tqdm=True)
    assert calls[0]["prompts"] == ["<|startoftext|>"]


def test_a_result_depends_on_its_request_alone(lm: DLM) -> None:
    requests = [ask(p, SAMPLED, doc) for doc, p in enumerate(PROMPTS)]
    texts = lm.generate_until(requests, disable_tqdm=True)
    assert len(set(texts)) > 3
    lm.batch_size = 5
    assert lm.generate_until(requests[::-1], disable_tqdm=True) == texts[::-1]
    assert lm.generate_until(requests[1::2], disable_tqdm=True) == texts[1::2]


def test_the_seed_of_model_args_decides(lm: DLM) -> None:
    request = [ask("Compute: 6*8", SAMPLED)]
    other = DLM(seed=1).generate_until(request, disable_tqdm=True)
    assert other != lm.generate_until(request, disable_tqdm=True)


def test_repeats_differ_and_copies_that_even_processes_do_not(lm: DLM) -> None:
    hot = SAMPLED | {"temperature": 3.0}
    one, two = ask("Compute: 6*8", hot, 0, 3), ask("Compute: 6*8", hot, 1, 3)
    texts = lm.generate_until([*3 * [one], *3 * [two], *3 * [two]], disable_tqdm=True)
    assert len(set(texts[:6])) == 6
    assert texts[6:] == texts[3:6]


def test_keys_are_stable() -> None:
    requests = [ask("a", {}, 0), ask("a", {}, 1), ask("b", {}, 0), ask("a", {}, 0)]
    found = list(keys(requests))
    assert found[0] == found[3] == -3269159728504604855
    assert len(set(found)) == 3
    assert list(keys([ask("a", {}, 0, None)])) == found[:1]


def test_equal_requests_are_decoded_once(lm: DLM, plant: Callable[..., Calls]) -> None:
    calls = plant(lambda prompt: prompt)
    requests = [ask("a", GREEDY), ask("b", GREEDY), ask("a", GREEDY)]
    assert lm.generate_until(requests, disable_tqdm=True) == ["a", "b", "a"]
    assert sum(len(call["prompts"]) for call in calls) == 2


def test_results_are_cached_as_lm_eval_looks_for_them(
    lm: DLM, plant: Callable[..., Calls], tmp_path: Any
) -> None:
    calls = plant(lambda prompt: prompt)
    requests = [ask(p, GREEDY, doc) for doc, p in enumerate(PROMPTS)]
    kept: list[Any] = []
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    lm.cache_hook.add_partial = lambda *found: kept.append(found)
    assert caching.generate_until(requests) == PROMPTS
    assert sorted(kept, key=str) == sorted(
        [("generate_until", r.args, p) for r, p in zip(requests, PROMPTS, strict=True)], key=str
    )
    before = len(calls)
    assert caching.generate_until(requests[:3]) == PROMPTS[:3]
    assert len(calls) == before
    caching.dbdict.close()


def test_chat_messages_become_a_prompt_with_one_start_of_text(lm: DLM) -> None:
    chat = [{"role": "user", "content": "hello"}]
    text = lm.apply_chat_template(chat)
    assert lm.tok_encode(text) == dlm.encode_prompts(lm.model, [chat])[0]
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    begun = [*chat, {"role": "assistant", "content": "Well"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith("Well")


def test_start_of_text_is_not_doubled(lm: DLM, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[bool] = []

    class Tokenizer:
        bos_token = "<s>"

        def encode(self, _: str, add_special_tokens: bool) -> list[int]:
            added.append(add_special_tokens)
            return [1]

    monkeypatch.setattr(lm, "tokenizer", Tokenizer())
    lm.tok_encode("a")
    lm.tok_encode("<s>a")
    lm.tok_encode("a", add_special_tokens=False)
    assert added == [True, False, False]


def test_model_facts(lm: DLM) -> None:
    assert lm.tokenizer_name == "dlm-built-in"
    assert DLM(pretrained="org/name").tokenizer_name == "org__name"
    assert (lm.max_length, lm.eot_token_id) == (512, 1)
    assert lm.get_model_info()["dlm_version"] == dlm.__version__
    assert (lm.rank, lm.world_size) == (0, 1)
    tensor = torch.arange(2)
    assert lm.all_gather(tensor) is tensor
    assert lm.gather_object("it") == ["it"]
    lm.barrier()


def test_a_model_without_a_tokenizer_is_refused(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = dlm.Model(built_in.network, None, built_in.spec)
    monkeypatch.setattr(dlm, "load", lambda *_args, **_options: bare)
    with pytest.raises(ValueError, match="needs a model with a tokenizer"):
        DLM(pretrained="org/name")
