"""Other tasks that the built-in model was trained on: word problems, functions and arithmetic.

The problems are held-out examples of the generators of `dlm.data`, in the form that the model
knows. Each line of a user's file has a prompt and a response:

    {"prompt": "Compute: 3*4, 9-2, 8/4, 1+1", "response": "3*4=12. 9-2=7. 8/4=2. 1+1=2."}

Checked against the generators:
- Every reference response is correct by the rule of `dlm.data` that scores it.
- Functions are compared with the accepted ones by syntax tree; no code runs.
"""

from collections.abc import Callable
from pathlib import Path

from dlm.data import Example, make_task
from dlm.data.word_problems import final_answer
from dlm.eval.source import drawn, read_records
from dlm.eval.task import Metric, Preset, Problem, Source, Task, Template

OURS = "the generators of dlm"


def problem(number: int, example: Example) -> Problem:
    """An example as a problem; its id is its index."""
    return Problem(str(number), {"prompt": example.prompt}, example.response)


def whole(problem: Problem, output: str) -> str | None:
    """The output as it is, unless it is blank."""
    return output if output.strip() else None


def marked(problem: Problem, output: str) -> str | None:
    """The whole number after the last `####`."""
    answer = final_answer(output)
    return None if answer is None else str(answer)


def _read(name: str) -> Callable[[Path], list[Problem]]:
    """A reader of files of prompts and responses, which the task's own rule must accept."""
    rule = make_task(name).is_correct

    def read(path: Path) -> list[Problem]:
        found = []
        for number, record in enumerate(read_records(path)):
            example = Example(name, record.text("prompt"), record.text("response"))
            if not rule(example.prompt, example.response):
                raise record.refuse(f"must be a problem of {OURS} with its answer", example.prompt)
            found.append(problem(number, example))
        return found

    return read


def _task(name: str, count: int, metric: Metric, length: int, reported: str) -> Task:
    """Create the task of a generator."""

    def local() -> list[Problem]:
        return [problem(n, each) for n, each in enumerate(drawn(name, count, held_out=True))]

    return Task(
        name=name,
        version=2,  # 1: thoughts were read
        summary=make_task(name).description,
        paper=OURS,
        licence="Apache-2.0",
        source=Source(read=_read(name), local=local, where=OURS),
        templates=(Template("plain", "{prompt}", chat=True),),
        metrics=(metric,),
        presets=(
            Preset(
                "built-in",
                {"gen_length": length, "block_length": None},
                "README, built-in model, 200 problems",
                reported,
            ),
        ),
    )


def _rule(name: str, before: str = "") -> Callable[[Problem, str], bool]:
    """The rule of a generator, applied to what was extracted."""
    rule = make_task(name).is_correct
    return lambda problem, extracted: rule(problem.fields["prompt"], before + extracted)


WORD_PROBLEMS = _task(
    "word_problems",
    500,
    Metric("solved", marked, _rule("word_problems", "#### ")),
    36,
    "87.0 at 36.0 forwards; 85.5 at 3.1 with threshold 0.9",
)
FUNCTIONS = _task(
    "functions",
    200,  # the held-out side has about 350
    Metric("solved", whole, _rule("functions")),
    36,
    "98.5 at 36.0 forwards; 99.5 at 1.1 with threshold 0.9",
)
ARITHMETIC = _task(
    "arithmetic",
    500,
    Metric("solved", whole, _rule("arithmetic")),
    42,
    "92.0 at 42.0 forwards; 77.5 at 2.8 with threshold 0.9",
)
