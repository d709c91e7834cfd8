"""The parts of `run.json` that are read again."""

from typing import Any, NotRequired, TypedDict


class Data(TypedDict):
    """What the problems are."""

    sha256: str


class Generation(TypedDict):
    """Options of `dlm.generate`."""

    seed: Any


class Execution(TypedDict):
    """What executed generated code."""

    python: Any
    sandbox: Any


class Settings(TypedDict):
    """What determines the results, as far as it is read again."""

    task: str
    task_version: int
    data: Data
    templates: list[str]
    model: str
    dtype: str
    device: str
    decoder: str
    decoder_options: dict[str, Any]
    generation: Generation
    dlm: str
    execution: NotRequired[Execution]


class Record(TypedDict):
    """The content of `run.json` besides its format."""

    settings: Settings
    hash: str
    problems: int
    samples: int
    launches: list[dict[str, str | int | None]]
