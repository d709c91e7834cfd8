"""Sources of problems: the user's file, bundled or generated data, and the Hugging Face hub."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm.data import Example, generate_examples
from dlm.eval.task import AnyTemplate, Problem, Task
from dlm.options import file, integer, writable

GZIP = b"\x1f\x8b"
TRIES = 20  # draws per wanted example before giving up on more distinct ones
HELD_OUT_SEED = 1  # as in the README's table
HELD_IN_SEED = 0
HELD_IN = 8  # solved examples that generators offer


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a data set, and its place."""

    where: str  # for messages: file and line
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value of a key.

        Raises:
            ValueError: the object does not have the key.
        """
        if key not in self.values:
            raise ValueError(f"{self.where}: must have {key!r}, got {sorted(self.values)}")
        return self.values[key]

    def text(self, key: str) -> str:
        """A value that must be text.

        Raises:
            ValueError: it is missing, or not text.
        """
        value = self.get(key)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {key!r} must be text, got {value!r}")
        return writable(value, f"{self.where}: {key!r}")

    def texts(self, key: str) -> list[str]:
        """A value that must be a list of texts.

        Raises:
            ValueError: it is missing, or not a list of texts.
        """
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{self.where}: {key!r} must be a list of texts, got {value!r}")
        return [writable(each, f"{self.where}: {key!r}") for each in value]

    def refuse(self, rule: str, value: object) -> ValueError:
        """The error to raise if a value breaks a rule."""
        return ValueError(f"{self.where}: {rule}, got {value!r}")


def load_problems(
    task: Task, data: Path | None, limit: int | None
) -> tuple[list[Problem], dict[str, Any]]:
    """The problems to score, and the facts about all of them: origin, number and SHA-256.

    They come from `data`, else from bundled or generated data, else from the hub. Solved examples
    in the data set are left out. `limit` takes the first problems; the facts do not depend on it.

    Raises:
        ValueError: a file is malformed, two problems have one id, or data is not available.
    """
    if limit is not None:
        integer("limit", limit, least=1)
    found, origin = _read(task, data)
    problems = [each for each in found if each.id not in task.source.held_in]
    _require_distinct(task, problems, origin)
    told = {"origin": origin, "problems": len(problems), "sha256": fingerprint(problems)}
    return problems[:limit], told


def _read(task: Task, data: Path | None) -> tuple[list[Problem], str]:
    """All problems of the best available source, and its name."""
    source = task.source
    if data is not None:
        return source.read(_file("data", data)), f"file {data.name}"
    if source.local is not None:
        try:
            return source.local(), "built in"
        except ModuleNotFoundError:  # the package with the problems is not installed
            if source.hub is None:
                raise
    if source.hub is None:
        raise ValueError(f"{task.name} needs --data FILE: {source.where}")
    return source.hub(), f"hub {source.where}"


def _file(name: str, path: Path) -> Path:
    return Path(file(f"--{name}", str(path))).expanduser()


def _require_distinct(task: Task, problems: list[Problem], origin: str) -> None:
    """Refuse an empty set of problems, and repeated ids."""
    if not problems:
        raise ValueError(f"{task.name}: {origin} must have at least one problem, got none")
    seen: set[str] = set()
    for each in problems:
        if each.id in seen:
            raise ValueError(
                f"{task.name}: {origin} must have every id once, got {each.id!r} twice"
            )
        seen.add(each.id)


def load_shots(
    task: Task, template: AnyTemplate, shots: Path | None, data: Path | None
) -> list[Problem]:
    """The solved examples of a template: the first of a source, the same for every problem.

    They come from `shots`, else from the task's own source: next to `data`, or the hub.

    Raises:
        ValueError: there are too few, a file is malformed, or `shots` is the file of the problems.
    """
    if not template.shots:
        return []
    asked = None if data is None else _file("data", data)
    if shots is None and task.source.examples is None:
        raise ValueError(f"template {template.name!r} of {task.name} needs --shots FILE")
    if shots is not None:
        path = _file("shots", shots)
        if asked is not None and not task.source.held_in and path.samefile(asked):
            raise ValueError(f"shots must be another file than data, got {str(shots)!r} for both")
        found, named = task.source.read(path), f"file {path.name}"
    else:
        assert task.source.examples is not None
        found, named = task.source.examples(asked), "its source"
    held_in = [each for each in found if each.id in task.source.held_in]
    chosen = (held_in or found)[: template.shots]
    if len(chosen) < template.shots:
        raise ValueError(
            f"template {template.name!r} of {task.name} needs {template.shots} solved examples, "
            f"{named} has {len(chosen)}"
        )
    return chosen


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of everything in the problems, independent of their origin."""
    rows = [[each.id, dict(each.fields), each.answer, dict(each.data)] for each in problems]
    text = json.dumps(rows, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_text(path: Path) -> str:
    """Read a UTF-8 file, decompressed if it is gzip.

    Raises:
        ValueError: the file is invalid or empty.
    """
    raw = path.read_bytes()
    if path.suffix == ".gz" or raw.startswith(GZIP):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: must be a whole gzip file ({error})") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: must be UTF-8 ({error.reason})") from None
    if not text.strip():
        raise ValueError(f"{path}: must hold at least one problem, got an empty file")
    return text


def read_records(path: Path) -> list[Record]:
    """Read the objects of a JSON array, or of JSON lines; blank lines are skipped.

    Raises:
        ValueError: the file is neither; names the line, or the index in the array.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        return [_record(f"{path}[{n}]", each) for n, each in enumerate(_array(path, text))]
    lines = [(f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_record(where, _json(where, line)) for where, line in lines]


def _array(path: Path, text: str) -> list[Any]:
    try:
        found: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise ValueError(f"{where}: must be a JSON array ({error})") from None
    return found


def _json(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: must be a line of JSON ({error}), got {line[:60]!r}") from None


def _record(where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(value).__name__}")
    return Record(where, value)


def unique(records: Iterable[Record], key: str) -> list[Record]:
    """The records, checked to have distinct values of `key`.

    Raises:
        ValueError: two records have the same value; names both places.
    """
    seen: dict[str, str] = {}
    found = list(records)
    for each in found:
        value = str(each.get(key))
        if value in seen:
            raise each.refuse(f"{key!r} must not be that of {seen[value]}", value)
        seen[value] = each.where
    return found


def hub_records(name: str, config: str | None, split: str, option: str = "--data") -> list[Record]:
    """Read the rows of a data set on the Hugging Face hub.

    Raises:
        ValueError: `datasets` is not installed, or the rows are not available.
    """
    wanted = f"{name} (split {split})" if config is None else f"{name} ({config}, split {split})"
    instead = f"download it once and give {option} FILE"
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            f'{wanted} is on the Hugging Face hub, which needs pip install -e ".[eval]"; '
            f"or {instead}"
        ) from None
    try:
        rows = load_dataset(name, config, split=split)
    except Exception as error:  # offline, renamed, gated: each layer has its own errors
        raise ValueError(
            f"{wanted} cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {str(error)[:200]}): go online, or {instead}"
        ) from error
    return [_record(f"{name} {split}[{n}]", dict(row)) for n, row in enumerate(rows)]


def drawn(
    name: str, count: int, *, held_out: bool, but: frozenset[str] = frozenset()
) -> list[Example]:
    """Draw distinct examples from one side of the split of a generator of `dlm.data`."""
    found: dict[str, Example] = {}
    seed = HELD_OUT_SEED if held_out else HELD_IN_SEED
    for example in generate_examples(
        name, seed, count=TRIES * count, held_out=but, split="test" if held_out else "train"
    ):
        found.setdefault(example.prompt, example)
        if len(found) == count:
            break
    return list(found.values())


def held_in(
    name: str, make: Callable[[int, Example], Problem], read: Callable[[Path], list[Example]]
) -> Callable[[Path | None], list[Problem]]:
    """The solved examples of a generator, none of them a problem in the user's file."""

    def examples(data: Path | None) -> list[Problem]:
        but = frozenset(each.prompt for each in read(data)) if data else frozenset[str]()
        found = drawn(name, HELD_IN, held_out=False, but=but)
        return [make(number, each) for number, each in enumerate(found)]

    return examples
