"""The command group of `dlm eval`, with help for unknown task names."""

from typing import Any

from typer.core import TyperGroup

from dlm.options import known


class Tasks(TyperGroup):
    """The tasks by name; an unknown name may be one of lm-eval's hundreds of tasks."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a name.

        Raises:
            ValueError: there is none; the message has the closest match, the list and `dlm
                lm-eval`.
        """
        name = args[0]
        if not name.startswith("-"):
            try:
                known("task", name, self.commands)
            except ValueError as error:
                more = f"dlm lm-eval --tasks {name} takes those of lm-eval"
                raise ValueError(f"{error}; {more}") from None
        return super().resolve_command(ctx, args)
