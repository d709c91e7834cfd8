"""lm-eval's own tasks on the built-in model, and on planted answers, with no network."""

import functools
import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlm
from dlm.models.loading import silence

pytest.importorskip("lm_eval")

import lm_eval  # type: ignore[import-untyped]
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

from dlm.eval.lm_eval_model import DLM

STOCK = Path(lm_eval.__file__).parent / "tasks"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SUMS = [(17, 25), (8, 31), (40, 2), (9, 9), (120, 5), (66, 7), (3, 70), (11, 12)]
GENERATED = """
task: continue
dataset_path: json
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {do_sample: true, temperature: 1.0, max_gen_toks: 12, until: ["."]}
repeats: 2
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list: [{name: first, filter: [{function: take_first}]}]
"""
CHOSEN = """
task: choose
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "Compute: {{question}}\\n"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
CODE_EVAL = '''
"""Stands in for the metric of the hub: a program passes if it is the canonical one. Runs none."""

import json
from pathlib import Path

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        features = {
            "predictions": datasets.Sequence(datasets.Value("string")),
            "references": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references, k):
        right = set(json.loads(Path("right.json").read_text()))
        passed = [program in right for programs in predictions for program in programs]
        return {"pass@1": sum(passed) / len(passed)}, {}
'''


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def write_lines(file: Path, records: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def write_task(folder: Path, name: str, text: str, **files: Path) -> None:
    """A task file with its data, and its cache, in the folder."""
    data = {split: str(file) for split, file in files.items()}
    settings = {"data_files": data, "cache_dir": str(folder / "cache")}
    (folder / f"{name}.yaml").write_text(f"{text}\ndataset_kwargs: {json.dumps(settings)}\n")


def override(stock: str, task: str) -> str:
    """One of lm-eval's own tasks, read from local files."""
    return f"include: {STOCK / stock}\ntask: {task}\ndataset_path: json\ndataset_name: null"


def evaluate(model: Any, folder: Path, *tasks: str, **options: Any) -> Any:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with silence():
        return lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
            **options,
        )


def gsm8k(folder: Path) -> list[dict[str, str]]:
    """Writes the task `gsm8k_file`; its test problems."""
    if DATA.is_dir():
        files = {split: DATA / f"gsm8k_{split}.jsonl" for split in ("train", "test")}
    else:
        lines = [
            {
                "question": f"Ann has {a} pears and buys {b} more. How many has she?",
                "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b} pears.\n#### {a + b}",
            }
            for a, b in SUMS
        ]
        file = write_lines(folder / "gsm8k.jsonl", lines)
        files = {"train": file, "test": file}
    write_task(folder, "gsm8k_file", override("gsm8k/gsm8k.yaml", "gsm8k_file"), **files)
    return [json.loads(line) for line in files["test"].read_text().splitlines()]


def humaneval(folder: Path) -> list[dict[str, str]]:
    """Writes the task `humaneval_file` and its metric; its problems."""
    if DATA.is_dir():
        with gzip.open(DATA / "HumanEval.jsonl.gz", "rt") as lines:
            problems = [json.loads(line) for line in lines][:8]
    else:
        problems = [
            {
                "task_id": f"ours/{a}",
                "prompt": f'def add_{a}(n):\n    """Add {a} to n."""\n',
                "canonical_solution": f"    return n + {a}\n",
                "entry_point": f"add_{a}",
                "test": f"def check(candidate):\n    assert candidate({b}) == {a + b}\n",
            }
            for a, b in SUMS
        ]
    file = write_lines(folder / "humaneval.jsonl", problems)
    write_task(
        folder, "humaneval_file", override("humaneval/humaneval.yaml", "humaneval_file"), test=file
    )
    (folder / "code_eval").mkdir()
    (folder / "code_eval" / "code_eval.py").write_text(CODE_EVAL)
    right = [p["prompt"] + p["canonical_solution"] for p in problems]
    (folder / "right.json").write_text(json.dumps(right))
    return problems


def plant(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], gen_length: int, **more: Any
) -> DLM:
    """The adapter over a model that answers prompts by how they end."""
    with silence():
        adapter = DLM(gen_length=gen_length, **more)

    @functools.wraps(dlm.generate_each)
    def each(model: dlm.Model, prompts: Sequence[Sequence[int]], **_: Any) -> Any:
        tokenizer: Any = model.tokenizer
        for number, prompt in enumerate(prompts):
            text = tokenizer.decode(list(prompt))
            found = next(answer for end, answer in answers.items() if text.endswith(end))
            yield number, SimpleNamespace(tokens=[tokenizer.encode(found)])

    monkeypatch.setattr(dlm, "generate_each", each)
    return adapter


@pytest.mark.slow
def test_gsm8k_on_the_built_in_model(tmp_path: Path) -> None:
    gsm8k(tmp_path)
    found = evaluate(
        "dlm",
        tmp_path,
        "gsm8k_file",
        model_args="decoder=threshold,option.threshold=0.8,gen_length=32",
        limit=4,
        batch_size=2,
        device="cpu",
        log_samples=True,
    )
    assert 0 <= found["results"]["gsm8k_file"]["exact_match,strict-match"] <= 1
    samples = [one for one in found["samples"]["gsm8k_file"] if one["filter"] == "strict-match"]
    assert [one["doc_id"] for one in samples] == [0, 1, 2, 3]
    texts = [one["resps"][0][0] for one in samples]
    assert all(isinstance(text, str) and "Question:" not in text for text in texts)
    assert found["config"]["generate"]["decoder"] == "threshold"


@pytest.mark.parametrize("batch_size", [1, 3])
def test_gsm8k_scores_what_was_planted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch_size: int
) -> None:
    problems = gsm8k(tmp_path)[:8]
    answers = {}
    for number, problem in enumerate(problems):
        given = problem["answer"].split("####")[1].strip()
        answer = given if number % 4 else "-1"
        after = "\n\nQuestion: another\nAnswer: #### 12345"
        answers[f"{problem['question'][-60:]}\nAnswer:"] = f" So it is\n#### {answer}{after}"
    adapter = plant(monkeypatch, answers, 32, batch_size=batch_size)
    found = evaluate(adapter, tmp_path, "gsm8k_file", limit=8)["results"]["gsm8k_file"]
    assert found["exact_match,strict-match"] == 0.75
    assert found["exact_match,flexible-extract"] == 0.75


def test_humaneval_scores_what_was_planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problems = humaneval(tmp_path)
    answers = {}
    for number, problem in enumerate(problems):
        body = problem["canonical_solution"] if number % 4 else "    pass\n"
        answers[problem["prompt"][-60:]] = f"{body}\ndef more():\n    pass"
        assert "\ndef" not in body
    adapter = plant(monkeypatch, answers, 32, batch_size=3)
    found = evaluate(adapter, tmp_path, "humaneval_file")["results"]["humaneval_file"]
    assert found["pass@1,create_test"] == 0.75


def test_humaneval_on_the_built_in_model(tmp_path: Path) -> None:
    humaneval(tmp_path)
    found = evaluate(
        "dlm",
        tmp_path,
        "humaneval_file",
        model_args={"decoder": "saber", "decoder_options": {"n": 2}, "gen_length": 64},
        limit=4,
        batch_size=4,
        log_samples=True,
    )
    assert 0 <= found["results"]["humaneval_file"]["pass@1,create_test"] <= 1
    samples = found["samples"]["humaneval_file"]
    stops = samples[0]["arguments"][0][1]["until"]
    texts = [one["resps"][0][0] for one in samples]
    assert len(texts) == 4
    assert not any(stop in text for stop in stops for text in texts)


def choose(folder: Path) -> list[dict[str, Any]]:
    """Writes the task `choose`; its questions."""
    lines = [
        {"question": f"{a}+{b}", "choices": [f"{a + b}", f"{a + b + 10}", f"{a}"], "right": 0}
        for a, b in SUMS[:5]
    ]
    write_task(folder, "choose", CHOSEN, test=write_lines(folder / "choose.jsonl", lines))
    return lines


def test_choices_are_scored_by_the_bound(tmp_path: Path) -> None:
    lines = choose(tmp_path)
    found = evaluate(
        "dlm", tmp_path, "choose", model_args="mc_num=8,seed=2,device=cpu", log_samples=True
    )
    with silence():
        model = dlm.load()
    tokenizer: Any = model.tokenizer
    hits = []
    for line, sample in zip(lines, found["samples"]["choose"], strict=True):
        context = tokenizer.encode(f"Compute: {line['question']}")
        bounds = []
        for (resp,), choice in zip(sample["resps"], line["choices"], strict=True):
            target = tokenizer.encode(f"Compute: {line['question']}\n{choice}")[len(context) :]
            bounds.append(dlm.log_likelihood(model, context, target, samples=8, seed=2))
            assert math.isclose(resp[0], bounds[-1], rel_tol=1e-5)  # beside other rows
        hits.append(bounds.index(max(bounds)) == line["right"])
    assert found["results"]["choose"]["acc,none"] == sum(hits) / len(hits)


RUNNER = """
import typer
from dlm.cli.errors import Commands
from dlm.eval.lm_eval_cli import lm_eval

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
app.callback()(lambda: None)
settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command("lm-eval", context_settings=settings)(lm_eval)
app()
"""
"""As `dlm lm-eval`."""


def command(launcher: Sequence[str], folder: Path, *words: str) -> Any:
    """What came of the command."""
    (folder / "runner.py").write_text(RUNNER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, *launcher, "runner.py", "lm-eval", "--include_path", str(folder), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
        timeout=300,
    )


def results(launcher: Sequence[str], folder: Path, name: str, *words: str) -> Any:
    """Results and samples of a run of `continue` and `choose`."""
    done = command(launcher, folder, "--output_path", name, "--log_samples", *words)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / name).rglob("results_*.json")
    samples = {}
    for task, repeats in (("continue", 2), ("choose", 1)):
        (file,) = (folder / name).rglob(f"samples_{task}_*.jsonl")
        lines = map(json.loads, file.read_text().splitlines())
        samples[task] = sorted((one["doc_id"], once(one["resps"], repeats)) for one in lines)
    return json.loads(found.read_text()), samples


def once(responses: list[list[Any]], repeats: int) -> list[list[Any]]:
    """Responses without the copies of the last request that lm-eval makes processes even with."""
    for some in responses:
        assert some == [some[copy % repeats] for copy in range(len(some))]
    return [some[:repeats] for some in responses]


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path: Path) -> None:
    lines = choose(tmp_path)
    records = [{"question": f"Compute: {one['question']}", "answer": "42"} for one in lines]
    file = write_lines(tmp_path / "continue.jsonl", records)
    write_task(tmp_path, "continue", GENERATED, test=file)
    words = ["--tasks", "continue,choose", "--model_args", "samples=8,decoder=threshold,seed=-7"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one, samples = results([], tmp_path, "one", *words, "--batch_size", "3")
    two, others = results(launcher, tmp_path, "two", *words)
    assert one["config"]["model"] == two["config"]["model"] == "dlm"
    assert one["config"]["generate"] == {"decoder": "threshold", "seed": "-7"}
    assert one["results"] == two["results"]
    assert samples["continue"] == others["continue"]
    for (number, found), (doc, scores) in zip(samples["choose"], others["choose"], strict=True):
        assert number == doc
        for ((value, greedy),), ((bound, flag),) in zip(found, scores, strict=True):
            assert float(value) == pytest.approx(float(bound), rel=1e-5)  # beside other rows
            assert greedy == flag
    assert [len(samples[name]) for name in ("continue", "choose")] == [5, 5]
    assert any(a != b for _, ((a, b),) in samples["continue"])  # repeats are draws of their own


@pytest.mark.slow
def test_the_command_says_what_is_wrong_on_one_line(tmp_path: Path) -> None:
    choose(tmp_path)
    done = command([], tmp_path, "--tasks", "choose", "--model_args", "gen_lenght=3")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: unknown model argument 'gen_lenght'. Did you mean 'gen_length'?")
    assert "Traceback" not in done.stderr
