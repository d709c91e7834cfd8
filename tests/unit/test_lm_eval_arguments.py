"""What lm-eval is told on the command line, in model_args and in gen_kwargs."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dlm
from dlm.models.loading import silence

pytest.importorskip("lm_eval")

from lm_eval._cli.harness import HarnessCLI  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.registry import get_model  # type: ignore[import-untyped]

from dlm.eval import lm_eval_cli
from dlm.eval.lm_eval_arguments import Arguments, cut, from_harness, read_gen_kwargs
from dlm.eval.lm_eval_model import DLM


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


def test_is_registered() -> None:
    assert get_model("dlm") is DLM


def test_arguments_go_where_they_belong() -> None:
    found = Arguments.of(
        {"dtype": "float32", "decoder": "saber", "option.n": 4, "steps": 8, "samples": 3}
    )
    assert found.load == {"dtype": "float32"}
    assert found.generate == {"decoder": "saber", "decoder_options": {"n": 4}, "steps": 8}
    assert found.score == {"samples": 3}
    assert Arguments.of({"mc_num": 5, "greedy": False}).score == {"samples": 5, "greedy": False}


def parsed(*words: str) -> dict[str, Any]:
    """Model arguments as `lm-eval run` reads them."""
    values = HarnessCLI()._parser.parse_args(["run", "--model_args", *words]).model_args
    assert isinstance(values, dict)
    return values


def test_what_lm_evals_command_line_makes_of_arguments() -> None:
    words = "decoder=wino,option.threshold=0.7,block_length=none,seed=-3,suppress_tokens=[7,8]"
    expected = {
        "decoder": "wino",
        "decoder_options": {"threshold": 0.7},
        "block_length": None,
        "seed": -3,
        "suppress_tokens": [7, 8],
    }
    assert Arguments.of(parsed(words)).generate == expected
    assert isinstance(Arguments.of(parsed(words)).generate["seed"], int)
    assert Arguments.of(parsed("greedy=false,mc_num=4")).score == {"greedy": False, "samples": 4}
    apart = Arguments.of(parsed("decoder=wino", "option.threshold=0.7", "steps=8")).generate
    assert apart == {"decoder": "wino", "decoder_options": {"threshold": 0.7}, "steps": 8}
    whole = '{"decoder": "wino", "decoder_options": {"threshold": 0.7, "threshold_back": 0.8}}'
    assert Arguments.of(parsed(whole)).generate["decoder_options"] == {
        "threshold": 0.7,
        "threshold_back": 0.8,
    }


def test_what_lm_evals_other_parser_makes_of_arguments(built_in: dlm.Model) -> None:
    text = "pretrained=,decoder=wino,option.threshold=0.7,steps=None,seed=-3,stop_at_eos=false"
    made = DLM.create_from_arg_string(text, {"batch_size": "4", "device": "cpu"})
    assert made.batch_size == 4
    assert made.fixed == {
        "decoder": "wino",
        "decoder_options": {"threshold": 0.7},
        "steps": None,
        "seed": -3,
        "stop_at_eos": False,
    }
    one = DLM.create_from_arg_string('decoder=wino,decoder_options={"threshold":0.7}')
    assert one.fixed["decoder_options"] == {"threshold": 0.7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gen_lenght": 3}, "unknown model argument 'gen_lenght'. Did you mean 'gen_length'"),
        ({"row_keys": [1]}, "unknown model argument 'row_keys'"),
        ({"mc_num": 3, "samples": 3}, "give samples or mc_num, not both"),
        ({"option.n": 3, "decoder_options": {}}, "give decoder_options or option.n, not both"),
        ({"option.treshold": 3, "decoder": "threshold"}, "Did you mean 'threshold'"),
        ({"gen_length": 0}, "gen_length must be an int >= 1, got 0"),
        ({"gen_length": 512}, "must fit the model's 512 positions"),
        ({"temperature": "warm"}, "temperature must be a finite number >= 0, got 'warm'"),
        ({"samples": 0}, "samples must be an int >= 1, got 0"),
        ({"mc_batch_size": 0}, "mc_batch_size must be an int >= 1, got 0"),
        ({"greedy": "no"}, "greedy must be True or False, got 'no'"),
        ({"estimator": "montecarlo"}, "Did you mean 'monte_carlo'"),
        ({"batch_size": "auto"}, "batch_size must be an int >= 1, got 'auto'"),
        ({"batch_size": 0}, "batch_size must be an int >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_request(
    built_in: dlm.Model, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DLM(**given)


def test_model_args_win_over_lm_evals_flags(built_in: dlm.Model) -> None:
    made = DLM.create_from_arg_obj({"batch_size": 3, "device": "cpu"}, {"batch_size": 1})
    assert made.batch_size == 3
    with pytest.raises(ValueError, match="max_batch_size goes with batch_size=auto"):
        DLM.create_from_arg_obj({}, {"max_batch_size": 64})


def test_lm_evals_default_device_is_what_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert from_harness({"device": "cuda:0", "batch_size": None}) == {"device": "cpu"}
    assert "using the CPU" in caplog.text
    assert from_harness({"device": "cuda:1"}) == {"device": "cuda:1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert from_harness({"device": "cuda:0"}) == {"device": "cuda"}


def test_device_and_loading_arguments_reach_load(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def load(*args: Any, **options: Any) -> dlm.Model:
        seen.append((args, options))
        return built_in

    monkeypatch.setattr(dlm, "load", load)
    DLM(pretrained="some/where", device="cpu", dtype="float32")
    for name in (None, "", "built-in"):
        DLM(pretrained=name)
    assert seen[0] == (("some/where",), {"device": "cpu", "dtype": "float32"})
    assert seen[1:] == 3 * [((None,), {"device": None})]


def test_a_device_map_takes_the_place_of_the_harness_s_default(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(dlm, "load", lambda *_, **options: seen.append(options) or built_in)  # type: ignore[func-returns-value]
    harness = {"device": "cuda:0", "batch_size": 1}
    DLM.create_from_arg_obj({"device_map": "auto"}, harness)
    DLM.create_from_arg_obj({"device_map": "auto"}, {"device": "cuda:1"})  # which load refuses
    assert seen == [
        {"device": None, "device_map": "auto"}, {"device": "cuda:1", "device_map": "auto"},
    ]  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="device_map goes with one process, got 'auto' in 2"):
        DLM.create_from_arg_obj({"device_map": "auto"}, harness)


def test_smaller_weights_are_asked_for_by_name(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(dlm, "load", lambda *_, **options: seen.append(options) or built_in)  # type: ignore[func-returns-value]
    with pytest.raises(ValueError, match="unknown quantize '5bit'"):
        DLM(quantize="5bit")
    monkeypatch.setattr("dlm.cli.loading.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="quantize '4bit' needs bitsandbytes"):
        DLM(quantize="4bit")
    monkeypatch.setattr("dlm.cli.loading.find_spec", lambda name: object())
    monkeypatch.setattr("dlm.eval.lm_eval_arguments.quantization", lambda width: f"{width} wide")
    DLM(quantize="4bit")
    assert seen == [{"device": None, "quantization_config": "4bit wide"}]


def test_every_process_takes_its_own_device(
    built_in: dlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seen: list[Any] = []
    monkeypatch.setattr(dlm, "load", lambda *_, device: seen.append(device) or built_in)  # type: ignore[func-returns-value]
    made = DLM(device="cuda")
    assert seen == ["cuda:1"]
    assert (made.rank, made.world_size) == (1, 2)


@pytest.mark.parametrize(
    ("given", "until", "asked"),
    [
        ({}, (), {}),
        ({"until": "x"}, ("x",), {}),
        ({"until": ["x", "", "y"]}, ("x", "y"), {}),
        ({"until": None, "temperature": None}, (), {}),
        ({"do_sample": False, "temperature": 0.8}, (), {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.8}, (), {"temperature": 0.8}),
        ({"do_sample": True}, (), {"temperature": 1.0}),
        ({"temperature": 0.8}, (), {"temperature": 0.8}),
        ({"top_p": 0.9, "top_k": 5, "num_beams": 1}, (), {"top_p": 0.9, "top_k": 5}),
        ({"top_k": 0}, (), {"top_k": None}),
        ({"min_p": 0.1}, (), {"min_p": 0.1}),
        ({"max_gen_toks": 7}, (), {"gen_length": 7}),
        ({"max_new_tokens": 7}, (), {"gen_length": 7}),
        ({"max_gen_toks": 7, "max_tokens": 7}, (), {"gen_length": 7}),
    ],
)
def test_gen_kwargs(given: dict[str, Any], until: Any, asked: dict[str, Any]) -> None:
    assert read_gen_kwargs(given) == (until, asked)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1}, "unknown generation argument 'temprature'. Did you mean 'temperature'"),
        ({"repetition_penalty": 1.1}, "unknown generation argument 'repetition_penalty'"),
        ({"num_beams": 4}, "num_beams must be 1: there is no beam, got 4"),
        ({"max_gen_toks": 7, "max_new_tokens": 8}, "give one length, got"),
        ({"max_gen_toks": "7"}, "max_gen_toks must be an int >= 1, got '7'"),
        ({"do_sample": "no"}, "do_sample must be True or False, got 'no'"),
        ({"temperature": -1}, "temperature must be a finite number >= 0, got -1"),
        ({"top_p": 2}, "top_p must be a finite number in"),
        ({"until": 3}, "until must be a text or a list of texts, got 3"),
        ({"until": [3]}, "until must be a text or a list of texts"),
    ],
)
def test_bad_gen_kwargs_are_refused(lm: DLM, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lm.generate_until([ask("a", given)], disable_tqdm=True)


@pytest.mark.parametrize(
    ("text", "until", "kept"),
    [
        ("one two three", (), "one two three"),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("four",), "one two three"),
        ("xab", ("b", "ab"), "x"),  # what is left of the first, whatever their order
        ("stop", ("stop",), ""),
    ],
)
def test_cut(text: str, until: tuple[str, ...], kept: str) -> None:
    assert cut(text, until) == kept


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        (["--tasks", "x"], ["run", "--model", "dlm", "--tasks", "x"]),
        (["run", "--tasks", "x"], ["run", "--model", "dlm", "--tasks", "x"]),
        (["run", "--model_args", "a=b"], ["run", "--model", "dlm", "--model_args", "a=b"]),
        (["--tasks", "x", "--model", "hf"], ["run", "--tasks", "x", "--model", "hf"]),
        (["--tasks", "x", "--model=hf"], ["run", "--tasks", "x", "--model=hf"]),
        (["-Mhf", "-t", "x"], ["run", "-Mhf", "-t", "x"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["validate", "--tasks", "x"], ["validate", "--tasks", "x"]),
    ],
)
def test_the_command_adds_what_is_missing(given: list[str], complete: list[str]) -> None:
    assert lm_eval_cli.complete(given) == complete


@pytest.mark.parametrize(("line", "adds"), [("model: hf", False), ("limit: 3", True)])
def test_the_command_looks_into_a_config(tmp_path: Any, line: str, adds: bool) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{line}\ntasks: [x]\n")
    assert ("--model" in lm_eval_cli.complete(["--config", str(file)])) is adds


def run_command(*words: str) -> None:
    lm_eval_cli.lm_eval(SimpleNamespace(args=list(words)))  # type: ignore[arg-type]


def test_the_command_hands_over_and_leaves_argv_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append(list(sys.argv)))
    before = list(sys.argv)
    run_command("--tasks", "x")
    assert seen == [["lm-eval", "run", "--model", "dlm", "--tasks", "x"]]
    assert sys.argv == before


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_is_ours_and_lm_evals(words: tuple[str, ...], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(*words)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: dlm lm-eval")
    assert "usage: lm-eval run" in out


def test_without_lm_eval_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(lm_eval_cli, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[lm-eval\]"'):
        run_command("--tasks", "x")
    run_command("--help")
    assert "Usage: dlm lm-eval" in capsys.readouterr().out
