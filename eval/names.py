"""`dlm eval NAME`, where there is no such task."""

from typing import Any

from typer.core import TyperGroup

from dlm.options import known


class Tasks(TyperGroup):
    """The tasks by name; an unknown one may be of lm-eval, which has hundreds."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of a name.

        Raises:
            ValueError: there is none; the message has the close match, the list and `dlm lm-eval`.
        """
        name = args[0]
        if not name.startswith("-"):
            try:
                known("task", name, self.commands)
            except ValueError as error:
                more = f"dlm lm-eval --tasks {name} takes those of lm-eval"
                raise ValueError(f"{error}; {more}") from None
        return super().resolve_command(ctx, args)
