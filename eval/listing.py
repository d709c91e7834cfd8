"""`dlm eval TASK --list`: the templates, presets and metrics of a task."""

import typer

from dlm.cli.lists import pairs, print_table
from dlm.cli.results import print_json
from dlm.eval.task import AnyTemplate, InfillTemplate
from dlm.eval.tasks import TASKS


def describe(name: str, *, machine: bool) -> None:
    """Print the templates, presets and metrics of a task."""
    task = TASKS[name]
    if machine:
        print_json(
            {
                "name": task.name,
                "version": task.version,
                "summary": task.summary,
                "paper": task.paper,
                "licence": task.licence,
                "metrics": [metric.name for metric in task.metrics],
                "templates": [
                    {"name": t.name, "chat": t.chat, "shots": t.shots} for t in task.templates
                ],
                "infills": task.infills,
                "presets": [
                    {
                        "name": p.name,
                        "decoder": p.decoder,
                        "decoder_options": p.decoder_options,
                        "options": p.generation,
                        "template": p.template,
                        "source": p.source,
                        "reported": p.reported,
                    }
                    for p in task.presets
                ],
            }
        )
        return
    typer.echo(f"{task.name} (version {task.version}): {task.summary} {task.paper}")
    typer.echo(f"metrics: {', '.join(metric.name for metric in task.metrics)}\n")
    rows = [[t.name, kind(t), str(t.shots)] for t in task.templates]
    print_table(["template", "kind", "solved examples"], rows)
    typer.echo()
    print_table(
        ["preset", "decoder", "options", "template", "reported", "source"],
        [
            [
                p.name,
                f"{p.decoder}({pairs(p.decoder_options)})" if p.decoder_options else p.decoder,
                pairs(p.generation),
                p.template or "default",
                p.reported,
                p.source,
            ]
            for p in task.presets
        ],
    )


def kind(template: AnyTemplate) -> str:
    """The kind of a template in one word."""
    if isinstance(template, InfillTemplate):
        return "blanks"
    return "chat" if template.chat else "text"
