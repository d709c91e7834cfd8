"""Countdown: reach a number from three others, each used exactly once.

Gandhi et al. 2024, "Stream of Search", arXiv:2404.03683, in the format of the benchmark of Huang
et al. 2025 (PC-Sampler, arXiv:2508.13021): 1,000 problems with `--data countdown.jsonl`, else 500
generated ones that the built-in model never saw.

    {"input": "15,44,79,50", "output": "44-15=29,79-29=50"}

Checked against the original:
- the 1,000 reference answers are valid, and exact;
- `valid` is the score: it takes any equations that reach the target, where `exact`, the authors'
  comparison with the reference string, takes one way out of many;
- differs: the prompts are ours, and so is how equations are found in a longer text: signs of
  print and of LaTeX count as those of a keyboard, as does an x between numbers; parentheses around
  a left side or a number beside a sign add nothing, but no product is read out of 2(5) + 3 = 8;
  Markdown's emphasis is no operator; a result with a decimal part that is not zero is no equation.
"""

import re
from pathlib import Path

from dlm.data import Example, countdown
from dlm.eval.presets import published
from dlm.eval.source import drawn, held_in
from dlm.eval.task import Metric, Preset, Problem, Source, Task, Template

COUNT = 500

_EQUATION = re.compile(
    r"(?<![0-9.+*/-])(-?[0-9]{1,9})\s{0,2}([-+*/])\s{0,2}(-?[0-9]{1,9})"
    r"\s{0,2}=\s{0,2}(-?[0-9]{1,9})(?:\.0+)?(?!\.?[0-9])"
)
_SIGNS = str.maketrans("\u00d7\u22c5\u00b7\u2217\u00f7\u2212", "****/-")
_WORDS = {r"\times": "*", r"\cdot": "*", r"\div": "/"}
_NAMED = re.compile(r"\\(?:times|cdot|div)(?![a-zA-Z])")
_LETTER = re.compile(r"(?<=[0-9)])([^\S\n]{0,2})[xX]([^\S\n]{0,2})(?=[-(0-9])")
_MARKS = re.compile(  # an operator, with blanks on both sides or on none, or Markdown
    r"([0-9)](?:[^\S\n]*\*[^\S\n]*|\*+|[^\S\n]+\*+[^\S\n]+)(?=[-(0-9]))|[*_`]+"
)
_OPERAND = r"-?[0-9]{1,9}"
_ALONE = re.compile(  # a number in parentheses, behind a sign or in front of it
    rf"([-+*/=]\s{{0,2}})\(\s{{0,2}}({_OPERAND})\s{{0,2}}\)(?![0-9])"
    r"|\(\s{0,2}(-[0-9]{1,9})\s{0,2}\)(?=\s{0,2}[-+*/=])"
    # A positive one may count steps, as in (1) -29+79=50: it must begin a left side, and be no
    # argument or factor.
    r"|(?<![0-9a-zA-Z)])(?<![0-9][^\S\n])(?<![0-9][^\S\n]{2})"
    r"\(\s{0,2}([0-9]{1,9})\s{0,2}\)"
    rf"(?=[^\S\n]{{0,2}}[-+*/]\s{{0,2}}\(?\s{{0,2}}{_OPERAND}[\s)]{{0,4}}=)"
)
_SIDE = re.compile(  # a left side in parentheses; behind an operand it is a part of a longer one
    r"([0-9)](?:[^\S\n]{0,2}[-+*/][^\S\n]{0,2})?)?"
    rf"\((\s{{0,2}}{_OPERAND}\s{{0,2}}[-+*/]\s{{0,2}}{_OPERAND}\s{{0,2}})\)(?=\s{{0,2}}=)"
)


def problem(number: int, example: Example) -> Problem:
    """An example as a problem; its id is its place."""
    *numbers, target = example.prompt.removeprefix(countdown.PREFIX).split(",")
    fields = {"prompt": example.prompt, "numbers": ", ".join(numbers), "target": target}
    return Problem(str(number), fields, example.response)


def read(path: Path) -> list[Problem]:
    """The problems of a file in the published format."""
    return [problem(number, each) for number, each in enumerate(countdown.read_jsonl(path))]


def local() -> list[Problem]:
    """Generated problems, none of them shown to the built-in model."""
    found = drawn("countdown", COUNT, held_out=True)
    return [problem(number, each) for number, each in enumerate(found)]


def equations(problem: Problem, output: str) -> str | None:
    """The last equations, as many as it takes: one fewer than there are numbers.

    Where there are more, one that says the last again, as a check does, counts once.
    """
    needed = len(problem.fields["numbers"].split(",")) - 1
    text = _NAMED.sub(lambda found: _WORDS[found[0]], output.translate(_SIGNS))
    text = _MARKS.sub(lambda found: found[1] or "", _LETTER.sub(r"\1*\2", text))
    text = _ALONE.sub(lambda found: f"{found[1] or ''}{found[2] or found[3] or found[4]}", text)
    text = _SIDE.sub(lambda found: found[0] if found[1] else found[2], text)
    found = [f"{a}{how}{b}={c}" for a, how, b, c in _EQUATION.findall(text)]
    if len(found) > needed:
        found = [one for one, before in zip(found, [None, *found], strict=False) if one != before]
    return ",".join(found[-needed:]) if found else None


def valid(problem: Problem, extracted: str) -> bool:
    """Whether true equations use every number once and end at the target."""
    return countdown.is_correct(problem.fields["prompt"], extracted)


def exact(problem: Problem, extracted: str) -> bool:
    """Whether they are those of the reference, string for string."""
    return extracted == problem.answer


EXPLAINED = """\
Use each of the numbers {numbers} exactly once to reach {target}. The steps may add, subtract, \
multiply and divide, two numbers at a time; the result of a step counts as a new number.

Answer with the steps alone, as equations with a comma between them, like 3*4=12,12+5=17."""

TASK = Task(
    name="countdown",
    # 5: parentheses around a positive number in front of a sign hid equations. 4: thoughts were
    # read. 3: parentheses around other numbers or a left side hid equations. 2: so did \\times and
    # x. 1: so did emphasis and signs of print; 50.5 was 50
    version=6,
    summary="Reach a number from three others.",
    paper="Gandhi et al. 2024, arXiv:2404.03683",
    licence="Apache-2.0 where generated, MIT where published",
    source=Source(
        read=read,
        local=local,
        examples=held_in("countdown", problem, countdown.read_jsonl),
        where="countdown.jsonl of PC-Sampler",
    ),
    templates=(
        Template("plain", "{prompt}", chat=True),
        Template("explained", EXPLAINED, chat=True),
        Template(
            "base_5shot",
            "Numbers: {numbers}. Target: {target}.\nSteps:",
            shots=5,
            target=" {answer}",
            instruction="Reach the target from the numbers, each used once.\n\n",
            until=("Numbers:", "\n\n"),
        ),
    ),
    metrics=(Metric("valid", equations, valid), Metric("exact", equations, exact)),
    presets=(
        Preset(
            "built-in",
            {"gen_length": 24, "block_length": None},
            "README, built-in model, 200 generated problems",
            "14.5 at 24.0 forwards; 14.0 at 10.4 with threshold 0.9",
        ),
        *published("countdown"),
    ),
)
