"""The folder of a run: settings and samples, in a form that survives a kill.

DIR/run.json              settings, their hash, and where the run was made
DIR/samples.jsonl         one line for each finished sample
DIR/samples.rank1.jsonl   the same from other processes, merged when they are done
DIR/lock                  held by the process that writes
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dlm.eval.fields import misfit
from dlm.eval.record import Record
from dlm.eval.sample import Key, Sample

FORMAT = "dlm-eval"
VERSION = 1
SETTINGS = "run.json"
SAMPLES = "samples.jsonl"
GENERATION = "generation"  # the setting that contains the options of `dlm.generate`


def digest(value: Any) -> str:
    """A hash of any JSON value, as twelve hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Run:
    """The content of a folder: settings and samples, sorted by template, problem and sample."""

    folder: Path
    settings: dict[str, Any]  # everything that determines the results
    hash: str  # of the settings
    problems: int  # per template
    launches: list[dict[str, Any]]  # device, versions, batch size, ... of every start
    samples: list[Sample]
    repeats: int = 1  # samples per problem and template

    @property
    def templates(self) -> list[str]:
        """Template names, in the order of the settings."""
        return list(self.settings["templates"])

    @property
    def name(self) -> str:
        """The name of the run in tables: the decoder with its options."""
        options = self.settings["decoder_options"]
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"{self.settings['decoder']}({told})" if told else str(self.settings["decoder"])

    @property
    def complete(self) -> bool:
        """Whether every problem has all its samples under every template."""
        return len(self.samples) == self.wanted

    @property
    def wanted(self) -> int:
        """The number of samples of a complete run."""
        return self.problems * len(self.templates) * self.repeats


def read_run(folder: Path) -> Run:
    """Read the settings and samples of a folder, whether or not the run is complete.

    Raises:
        ValueError: the folder has no run, or a damaged one.
    """
    record = read_settings(folder)
    if record is None:
        raise ValueError(f"{str(folder)!r} must be the folder of a run: it has no {SETTINGS}")
    samples = merged(sample_files(folder), record["hash"])
    place = {name: number for number, name in enumerate(record["settings"]["templates"])}
    for each in samples.values():
        if each.template not in place:
            raise ValueError(
                f"{str(folder)!r} is damaged: it has samples of template {each.template!r}"
            )
    metrics = {tuple(each.scores) for each in samples.values()}
    if len(metrics) > 1:
        raise ValueError(f"{str(folder)!r} is damaged: its samples have metrics {sorted(metrics)}")
    return Run(
        folder=folder,
        settings=record["settings"],
        hash=record["hash"],
        problems=record["problems"],
        launches=record["launches"],
        samples=sorted(samples.values(), key=lambda each: (place[each.template], *each.key[1:])),
        repeats=record["samples"],
    )


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Read the object in `run.json`; None if there is none.

    Raises:
        ValueError: the file is not a valid run file.
    """
    path = folder / SETTINGS
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from None
    known = isinstance(record, dict) and record.get("format") == FORMAT
    if not known or record.get("version") != VERSION:
        raise ValueError(f'{path} must have "format": "{FORMAT}" and "version": {VERSION}')
    record.setdefault("samples", 1)  # older files have no such key
    told = misfit("a run", record, Record)
    if told is None and not (record["problems"] and record["samples"]):
        told = "a run must have problems, and samples of them"
    if told is not None:
        raise ValueError(f"{path} is damaged: {told}")
    if digest(record["settings"]) != record["hash"]:
        raise ValueError(f"{path} was changed by hand: its settings do not have the hash it names")
    return record


def samples_in(folder: Path) -> int:
    """Samples per problem of the run in a folder; 1 without a run.

    Raises:
        ValueError: the folder contains something else.
    """
    record = read_settings(folder)
    return 1 if record is None else int(record["samples"])


def sample_files(folder: Path) -> list[Path]:
    """The merged file first, then those of single processes."""
    return [folder / SAMPLES, *sorted(folder.glob("samples.rank*.jsonl"))]


def merged(paths: Iterable[Path], settings: str) -> dict[Key, Sample]:
    """Read the samples of several files; a sample that occurs twice is taken from the first.

    A line at the end of a file that a kill cut off is ignored.

    Raises:
        ValueError: another line is damaged, or belongs to other settings.
    """
    found: dict[Key, Sample] = {}
    for path in paths:
        if not path.exists():
            continue
        try:
            *lines, _ = path.read_text().split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        for number, line in enumerate(lines, start=1):
            try:
                sample = Sample.of(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number} is damaged: {error}") from None
            if sample.settings != settings:
                raise ValueError(
                    f"{path}:{number} must be of settings {settings}, got {sample.settings}"
                )
            found.setdefault(sample.key, sample)
    return found


def replace_file(path: Path, text: str) -> None:
    """Write a file atomically: after a kill, it is either the old or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class Appender:
    """Appends samples, each in one write of a whole line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trim()
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def trim(self) -> None:
        """Cut off an unfinished last line that a kill has left."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self.path, whole)

    def add(self, samples: Iterable[Sample]) -> None:
        """Append samples, and wait until they are on the disk."""
        for sample in samples:
            line = sample.line().encode()
            if os.write(self.file, line) != len(line):
                raise OSError(f"{self.path}: the disk took only a part of a line")
        os.fsync(self.file)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)


class Folder:
    """A folder that only this process writes to.

    Raises:
        ValueError: another process writes to it, or it contains a run with other settings.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(path / "lock", os.O_WRONLY | os.O_CREAT, 0o644)

    def __enter__(self) -> Self:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.lock)
            raise ValueError(f"--output {str(self.path)!r} is in use by another run") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.lock)

    def open(
        self,
        settings: Mapping[str, Any],
        problems: int,
        launch: Mapping[str, Any],
        *,
        samples: int = 1,
        vote: Callable[[str | None], str | None] | None = None,
    ) -> None:
        """Write the settings, or resume a run with the same settings.

        The number of problems, and of samples per problem, may increase from one start to the next.
        If `vote` is given, the votes of all existing samples are recomputed with it from what was
        read, because an older version might have spelled them differently from those to come.

        Raises:
            ValueError: the settings differ, or there would be fewer problems or samples.
        """
        record = read_settings(self.path)
        if record is not None:
            refuse_difference(self.path, record["settings"], settings)
            for option, name, given in (
                ("--limit", "problems", problems),
                ("--samples", "samples", samples),
            ):
                if given < record[name]:
                    of = " of each problem" if name == "samples" else ""
                    raise ValueError(
                        f"{option} must be at least the {record[name]} {name}{of} of the run in "
                        f"{str(self.path)!r}, got {given}: or give another --output"
                    )
        launches = [] if record is None else record["launches"]
        for name in (SETTINGS, SAMPLES):  # left if `replace_file` was killed
            for draft in self.path.glob(f".{name}.*"):
                draft.unlink()
        merge(self.path, digest(settings), vote)
        there = len(merged([self.path / SAMPLES], digest(settings)))
        if not launches or there < problems * len(settings["templates"]) * samples:
            launches = [*launches, dict(launch)]
        record = {
            "format": FORMAT,
            "version": VERSION,
            "settings": dict(settings),
            "hash": digest(settings),
            "problems": problems,
            "samples": samples,
            "launches": launches,
        }
        replace_file(self.path / SETTINGS, json.dumps(record, indent=1) + "\n")


def merge(
    folder: Path, settings: str, vote: Callable[[str | None], str | None] | None = None
) -> None:
    """Merge the samples of all processes into one file, in the order of their problems."""
    files = sample_files(folder)
    samples = merged(files, settings)
    order = sorted(samples.values(), key=lambda each: each.key)
    if vote is not None:
        order = [replace(each, vote=vote(each.reading)) for each in order]
    if samples:
        replace_file(folder / SAMPLES, "".join(each.line() for each in order))
    for path in files[1:]:
        with suppress(FileNotFoundError):
            path.unlink()


class Unset:
    """The value of a setting that a run does not have; distinct from None."""

    def __repr__(self) -> str:
        return "unset"


UNSET = Unset()


def refuse_difference(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings, naming what differs.

    Raises:
        ValueError: the settings differ.
    """
    names = dict.fromkeys([*new, *old])  # the general ones come first
    pairs = {name: (old.get(name, UNSET), new.get(name, UNSET)) for name in names}
    others = [name for name, (before, now) in pairs.items() if before != now]
    if others:
        first, *rest = others
        told = " and ".join(differences(first, *pairs[first]))
        more = f" (and another {', '.join(rest)})" if rest else ""
        raise ValueError(
            f"--output {str(folder)!r} holds a run with {told}{more}: give another folder"
        )


def differences(name: str, old: Any, new: Any) -> list[str]:
    """The differences in a setting, entry by entry if it has entries."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [f"{name} {old!r}, got {new!r}"]
    prefix = "" if name == GENERATION else f"{name} "  # its entries are named like options
    pairs = {key: (old.get(key, UNSET), new.get(key, UNSET)) for key in [*new, *old]}
    return [f"{prefix}{key} {a!r}, got {b!r}" for key, (a, b) in pairs.items() if a != b]
