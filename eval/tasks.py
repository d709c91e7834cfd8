"""The evaluation tasks by name.

Importing this module needs only the standard library. Code that reads the hub, compares mathematics
or runs programs is imported where it is used.
"""

from dlm.eval import (
    countdown,
    gsm8k,
    humaneval,
    humaneval_infill,
    math500,
    mbpp,
    sudoku,
    word_problems,
)
from dlm.eval.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        gsm8k.TASK,
        humaneval.TASK,
        humaneval_infill.SINGLE_LINE,
        humaneval_infill.MULTI_LINE,
        mbpp.TASK,
        math500.TASK,
        sudoku.TASK,
        countdown.TASK,
        word_problems.WORD_PROBLEMS,
        word_problems.FUNCTIONS,
        word_problems.ARITHMETIC,
    )
}
