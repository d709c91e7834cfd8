r"""GSM8K: grade-school word problems whose answer is a whole number.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168. There are
1,319 test problems; solved examples are the first of the 7,473 training problems.

    {"question": "Ann has 3 boxes of 4 pens. How many pens?",
     "answer": "She has 3 * 4 = <<3*4=12>>12 pens.\n#### 12"}

The score is `flexible`, the last number of the output. It is the only reading that works with every
template, and the usual one for models that were never told of `####`. It takes a stray "$." or
"..." for a number, as lm-eval does. `boxed_or_flexible`, which is not from lm-eval, looks into the
last `\boxed{}` first and compares values (18.00 is 18).

Checked against lm-eval 0.4.13, tasks/gsm8k/gsm8k.yaml (version 3):
- `strict` and `flexible` read and compare exactly as its filters `strict-match` and
  `flexible-extract` with its `exact_match`.
- `base_5shot` has its prompt, target and stop texts.
- Different from lm-eval: it draws new examples for every problem, while here they are the first of
  the training split.
"""

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

from dlm.eval.extract import last_boxed, last_number
from dlm.eval.presets import published
from dlm.eval.source import Record, hub_records, read_records
from dlm.eval.task import Metric, Problem, Source, Task, Template

HUB = "openai/gsm8k"
TRAIN = "gsm8k_train.jsonl"

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_GOLD = re.compile(r"#### -?[0-9][0-9,]*(?:\.[0-9]+)?\s*\Z")
_IGNORED = tuple(map(re.compile, (",", r"\$", r"(?s).*#### ", r"\.$")))
_DECIMAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_LATEX = re.compile(
    r"\\[!,;: ]|\{,\}|\\(?=[$%])"
    r"|\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}\s*\^\s*\{?[0-9]+\}?"  # of a unit, as in m^2
)


def problems(records: Iterable[Record]) -> list[Problem]:
    """Records as problems; their ids are their indices.

    Raises:
        ValueError: a record lacks a text, or its answer does not end in `#### N`.
    """
    found = []
    for number, record in enumerate(records):
        answer = record.text("answer").rstrip()  # the part compared is the number at its end
        if _GOLD.search(answer) is None:
            raise record.refuse("'answer' must end in '#### ' and a number", answer[-40:])
        found.append(Problem(str(number), {"question": record.text("question")}, answer))
    return found


def read(path: Path) -> list[Problem]:
    """Read the problems of a file in the published format."""
    return problems(read_records(path))


def examples(data: Path | None) -> list[Problem]:
    """Training problems, from the file next to the user's file, else from the hub."""
    beside = None if data is None else data.with_name(TRAIN)
    if beside is not None and beside.is_file():
        return read(beside)
    return problems(hub_records(HUB, "main", "train", "--shots"))


def normalised(text: str) -> str:
    """An answer as lm-eval's `exact_match` compares it (regexes_to_ignore, ignore_case)."""
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def is_correct(problem: Problem, extracted: str) -> bool:
    """Whether a number equals the reference, ignoring commas, dollar signs and a full stop."""
    return normalised(extracted) == normalised(problem.answer)


def is_equal(problem: Problem, extracted: str) -> bool:
    """Whether the values are equal, even if written differently: 18.00 is 18."""
    told, wanted = _number(extracted), _number(problem.answer)
    return is_correct(problem, extracted) or (told is not None and told == wanted)


def _number(text: str) -> Decimal | None:
    """The value of an answer; None if it is not a number."""
    plain = normalised(text)
    return Decimal(plain) if _DECIMAL.fullmatch(plain) else None


def strict(problem: Problem, output: str) -> str | None:
    """The number after the first `#### `."""
    found = _STRICT.search(output)
    return None if found is None else found[1]


def flexible(problem: Problem, output: str) -> str | None:
    """The last number."""
    return last_number(output)


def boxed_or_flexible(problem: Problem, output: str) -> str | None:
    r"""The last number in the last `\boxed{}`, else the last number of the output."""
    boxed = last_boxed(output)
    inside = None if boxed is None else last_number(_LATEX.sub("", boxed))
    return last_number(output) if inside is None else inside


STEPS = 'Work it out step by step. End with a line that has "#### " and the answer, a number alone.'
BOX = r"Reason step by step and put the answer, a number alone, into \boxed{{}}."
UNTIL = ("Question:", "</s>", "<|im_end|>")


def _chat(shots: int) -> Template:
    return Template(f"chat_{shots}shot", f"{{question}}\n\n{STEPS}", chat=True, shots=shots)


def _base(shots: int) -> Template:
    prompt = "Question: {question}\nAnswer:"
    return Template(f"base_{shots}shot", prompt, shots=shots, target=" {answer}", until=UNTIL)


TASK = Task(
    name="gsm8k",
    # What earlier versions did wrong. 3: thoughts were read. 2: boxed_or_flexible took the power of
    # a unit for the answer. 1: it compared texts, and a reference with a newline matched nothing.
    version=4,
    summary="Grade-school maths word problems.",
    paper="Cobbe et al. 2021, arXiv:2110.14168",
    licence="MIT",
    source=Source(
        read=read,
        hub=lambda: problems(hub_records(HUB, "main", "test")),
        examples=examples,
        where=f"{HUB}, config main, split test",
    ),
    templates=(
        Template("chat_cot", f"{{question}}\n\n{STEPS}", chat=True),
        Template("chat_boxed", f"{{question}}\n\n{BOX}", chat=True),
        *map(_chat, (4, 5, 8)),
        *map(_base, (5, 4, 8, 0)),
    ),
    metrics=(
        Metric("flexible", flexible, is_correct, spell=normalised),
        Metric("strict", strict, is_correct),
        Metric("boxed_or_flexible", boxed_or_flexible, is_equal),
    ),
    presets=published("gsm8k"),
)
