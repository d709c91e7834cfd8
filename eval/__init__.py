"""Evaluation: benchmarks, resumable runs, comparisons and reports.

    from dlm.eval import TASKS, choose_options, choose_templates, evaluate, make_plan, summarise

    task = TASKS["sudoku"]
    options = choose_options(task, None, {"decoder": "threshold"})
    plan = make_plan(task, choose_templates(task, [], chat=True), options, limit=100)
    run = evaluate(dlm.load(), plan, Path("runs/threshold"), name="built-in")
    print(summarise(run)[0].score)

On the command line, this is `dlm eval sudoku --limit 100 --decoder threshold`. Importing this
package needs neither torch nor a network connection.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.eval.comparison import compare
    from dlm.eval.folder import Run, read_run
    from dlm.eval.plan import Plan, choose_options, choose_templates, make_plan
    from dlm.eval.report import write_report
    from dlm.eval.runner import evaluate
    from dlm.eval.sample import Sample
    from dlm.eval.sandbox import Sandbox
    from dlm.eval.summary import summarise
    from dlm.eval.task import (
        Check,
        InfillTemplate,
        Metric,
        Preset,
        Problem,
        Source,
        Task,
        Template,
    )
    from dlm.eval.tasks import TASKS

__all__ = [
    "TASKS",
    "Check",
    "InfillTemplate",
    "Metric",
    "Plan",
    "Preset",
    "Problem",
    "Run",
    "Sample",
    "Sandbox",
    "Source",
    "Task",
    "Template",
    "choose_options",
    "choose_templates",
    "compare",
    "evaluate",
    "make_plan",
    "read_run",
    "summarise",
    "write_report",
]

_HOMES = {
    "TASKS": "tasks",
    "Check": "task",
    "InfillTemplate": "task",
    "Metric": "task",
    "Plan": "plan",
    "Preset": "task",
    "Problem": "task",
    "Run": "folder",
    "Sample": "sample",
    "Sandbox": "sandbox",
    "Source": "task",
    "Task": "task",
    "Template": "task",
    "choose_options": "plan",
    "choose_templates": "plan",
    "compare": "comparison",
    "evaluate": "runner",
    "make_plan": "plan",
    "read_run": "folder",
    "summarise": "summary",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOMES:
        return getattr(import_module(f"dlm.eval.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dlm.eval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
