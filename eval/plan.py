"""The plan of a run: its problems and prompts, and the settings that determine its results."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

import dlm
from dlm.eval.decode import Item
from dlm.eval.folder import digest
from dlm.eval.source import load_problems, load_shots
from dlm.eval.task import AnyTemplate, Problem, Task, Template
from dlm.options import integer, known

NOT_OPTIONS = (
    "model", "prompts", "row_keys", "stop", "return_trajectory", "return_order",
    "return_top_tokens", "prompt_cache", "batch_size", "constraint",
)  # fmt: skip
"""Parameters of `dlm.generate` that a run sets itself."""

GROWTH = {"max_gen_length": None, "expand_budget": None, "broadcast_deletion": False}
"""Options that `dlm.infill` has besides those of `dlm.generate`, and their defaults."""

NEUTRAL = {"top_p": 1, "min_p": 0}
"""Values at which a filter has no effect, as if it were not given."""
LATER = (
    "logit_bias", "refresh_around", "refresh_answer_every", "refresh_prompt_every",
    "refresh_decoded_every", "suffix_window", "min_p", "pad_after_eos",
)  # fmt: skip
"""Options that a run does not record while they are off."""

NOISES = frozenset({"uniform", "branch_noise"})  # needs of decoders that draw positions
ALL = "all"  # stands for every template
SHOWN = 200  # characters of an option that is neither a number nor a text


@dataclass(frozen=True, slots=True)
class Plan:
    """Problems, templates and options, before a model is loaded."""

    task: Task
    templates: tuple[AnyTemplate, ...]
    problems: list[Problem]
    data: dict[str, Any]  # the origin of the problems
    shots: dict[str, list[Problem]]  # by template
    options: dict[str, Any]  # of `dlm.generate` or `dlm.infill`, defaults included
    samples: int = 1  # per problem

    @property
    def generation(self) -> dict[str, Any]:
        """All options except the decoder's, as JSON values."""
        rest = {k: v for k, v in self.options.items() if k not in ("decoder", "decoder_options")}
        if rest.get("logit_bias"):
            rest["logit_bias"] = {str(token): x for token, x in rest["logit_bias"].items()}
        rest |= {name: None for name, none in NEUTRAL.items() if rest[name] == none}
        # Runs from before these options existed can then be resumed.
        kept = {name: x for name, x in rest.items() if x or name not in LATER}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    def items(self, model: dlm.Model) -> list[Item]:
        """Every prompt of every template, tokenized, once for each of its samples."""
        found = []
        for template in self.templates:
            rows = template.rows(model, self.problems, self.shots[template.name])
            found += [
                Item(template, problem, index, row.prompt, row.tokens, repeat, row.blanks)
                for index, (problem, row) in enumerate(zip(self.problems, rows, strict=True))
                for repeat in range(self.samples)
            ]
        return found


def named_templates(task: Task, names: Sequence[str]) -> tuple[AnyTemplate, ...]:
    """The templates with these names, or all of them for "all".

    Raises:
        ValueError: a name is unknown or given twice, or "all" is given with others.
    """
    if ALL in names:
        if len(names) > 1:
            raise ValueError(f"template must be {ALL!r} alone or names, got {list(names)}")
        return task.templates
    chosen = tuple(task.template(name) for name in names)
    if len(set(names)) != len(names):
        raise ValueError(f"template must name each template once, got {list(names)}")
    return chosen


def choose_templates(
    task: Task, names: Sequence[str], *, chat: bool, preset: str | None = None
) -> tuple[AnyTemplate, ...]:
    """The templates by name; all for "all"; without names that of the preset, else the default.

    Raises:
        ValueError: a name is unknown or given twice, "all" is given with others, or a chat template
            is given for a model without one.
    """
    usual = task.preset(preset).template
    wanted = names if names or usual is None else [usual]
    chosen = named_templates(task, wanted) or (task.default_template(chat=chat),)
    if ALL in names:
        chosen = tuple(each for each in chosen if chat or not each.chat)
    for each in chosen:
        if each.chat and not chat:
            raise ValueError(
                f"template must be one without chat messages, as the model has no chat template, "
                f"got {each.name!r} of {task.name}"
            )
    if not chosen:
        raise ValueError(f"{task.name} has only templates for models with a chat template")
    return chosen


def choose_options(task: Task, preset: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Decoding options: those given, else those of the preset, else the defaults.

    They are options of `dlm.generate` or `dlm.infill`. Given decoder options are merged over those
    of the preset. If the decoder differs from the preset's, and so has other options, only the
    given ones apply.

    Raises:
        ValueError: an option is unknown, belongs to another kind of task, or is set by the run
            itself.
    """
    allowed = allowed_options(task)
    chosen = task.preset(preset)
    for name in options:
        refuse_other_kind(task, name)
        known("option", name, allowed)
    found = allowed | dict(chosen.options) | dict(options)
    own = options.get("decoder_options") or {}
    if not isinstance(own, Mapping):
        return found  # refused later by `Settings`
    same = isinstance(found["decoder"], str) and found["decoder"] == chosen.decoder
    merged = (chosen.decoder_options if same else {}) | dict(own)
    return found | {"decoder_options": merged or None}


def allowed_options(task: Task) -> dict[str, Any]:
    """The options that a task takes, and their defaults."""
    parameters = inspect.signature(dlm.generate).parameters.items()
    found = {name: each.default for name, each in parameters if name not in NOT_OPTIONS}
    if task.infills:
        del found["gen_length"]
        found |= {"stop_at_eos": False, **GROWTH}
    return found


def refuse_other_kind(task: Task, name: str) -> None:
    """Refuse an option for another kind of task.

    Raises:
        ValueError: the option is for the other kind.
    """
    if task.infills and name == "gen_length":
        raise ValueError(
            f"gen_length is for tasks that go on with a prompt, not for {task.name}: a template "
            "says how many blanks there are, and max_gen_length how many they may become"
        )
    if not task.infills and name in GROWTH:
        raise ValueError(f"{name} is for tasks that fill blanks, not for {task.name}")


def check_preset(
    task: Task, preset: str | None, given: Mapping[str, Any], model: dlm.Model
) -> None:
    """Refuse a preset that names tokens outside the vocabulary, unless they were overridden.

    Raises:
        ValueError: it names such a token.
    """
    chosen = task.preset(preset)
    size = model.spec.vocab_size
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        ids = () if name in given else chosen.options.get(name, ())
        for each in ids:
            if each >= size:
                raise ValueError(
                    f"preset {chosen.name!r} of {task.name} must be for a model with token {each} "
                    f"({name}), got one with {size} tokens: give another --preset"
                )


def make_plan(
    task: Task,
    templates: tuple[AnyTemplate, ...],
    options: dict[str, Any],
    *,
    data: Path | None = None,
    shots: Path | None = None,
    limit: int | None = None,
    samples: int = 1,
) -> Plan:
    """Read the problems and the solved examples that the templates need.

    Raises:
        ValueError: a file is invalid, data is not available, `shots` is given although no template
            uses it, a solved example is also scored, or several samples are asked for although
            nothing is random.
    """
    check_samples(samples, options)
    if shots is not None and not any(each.shots for each in templates):
        named = ", ".join(each.name for each in templates)
        raise ValueError(f"--shots is for templates with solved examples, got it for {named}")
    problems, origin = load_problems(task, data, limit)
    examples = {each.name: load_shots(task, each, shots, data) for each in templates}
    for each in templates:
        if isinstance(each, Template):
            check_shots(each, problems, examples[each.name])
    return Plan(task, templates, problems, origin, examples, options, samples)


def check_samples(samples: int, options: Mapping[str, Any]) -> None:
    """Refuse several samples of a problem if they would all be the same.

    Raises:
        ValueError: `samples` is not an int >= 1, or is above 1 although neither tokens nor
            positions are random.
    """
    integer("--samples", samples, least=1)
    if samples > 1 and not draws(options):
        name, _ = describe_decoder(options["decoder"], options["decoder_options"])
        tokens = "temperature 0" if not options["temperature"] else "top_k 1"
        raise ValueError(
            f"--samples must be 1 where nothing is drawn, got {samples}: at {tokens} all samples "
            f"of a problem by {name!r} are the same; give a --temperature, a "
            "--position-temperature, or a decoder that draws positions, such as random"
        )


def draws(options: Mapping[str, Any]) -> bool:
    """Whether tokens or positions are drawn at random."""
    if options["position_temperature"] or (options["temperature"] and options["top_k"] != 1):
        return True
    decoder, own = options["decoder"], options["decoder_options"] or {}
    if not isinstance(own, Mapping):
        return True  # refused later by `Settings`
    if isinstance(decoder, str):
        decoder = dlm.decoders.make(decoder, **own)
    needs = getattr(decoder, "needs", NOISES)  # a decoder that declares no needs also gets noise
    return bool(getattr(decoder, "draws", NOISES.intersection(needs)))


def check_shots(template: Template, problems: Sequence[Problem], shots: Sequence[Problem]) -> None:
    """Refuse solved examples that are also scored: their prompts would contain the answer.

    Raises:
        ValueError: there is such an example; the message names the template and the problem.
    """
    scored = {question(template, each): each.id for each in problems}
    for each in shots:
        found = scored.get(question(template, each))
        if found is not None:
            raise ValueError(
                "--shots must hold no problem that is scored, as its prompt would hold its answer: "
                f"the solved examples of template {template.name!r} have problem {found!r} of "
                "--data; give another file for one of them"
            )


def question(template: Template, problem: Problem) -> str:
    """What a template asks, ignoring surrounding whitespace.

    Solutions are ignored, because they may be worded differently.
    """
    return template.prompt.format(**{name: each.strip() for name, each in problem.fields.items()})


def settings_of(
    plan: Plan, model: dlm.Model, name: str, execution: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that determines the results of a run, as JSON values.

    `execution` comes from `Sandbox.facts`, for tasks that run code.
    """
    decoder, options = describe_decoder(plan.options["decoder"], plan.options["decoder_options"])
    return {
        "task": plan.task.name,
        "task_version": plan.task.version,
        "metrics": [metric.name for metric in plan.task.metrics],
        # What the problems are. Their origin and number may change between starts.
        "data": {name: value for name, value in plan.data.items() if name != "origin"},
        "templates": [each.name for each in plan.templates],
        "template_texts": digest([asdict(each) for each in plan.templates]),
        "shots": digest({name: [asdict(x) for x in row] for name, row in plan.shots.items()}),
        "model": name,
        "weights": model.fingerprint(),
        "network": model.identity()["config"],
        "tokens": tokenization(model),
        "dtype": model.precision(),
        "device": device_name(model),
        "decoder": decoder,
        "decoder_options": options,
        "decoder_files": file_digests(options),
        "generation": plan.generation,
        "dlm": dlm.__version__,
        **({} if execution is None else {"execution": dict(execution)}),
    }


def describe_decoder(decoder: Any, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The name and options of a decoder given by name or as an instance.

    Raises:
        ValueError: the instance is not a dataclass, so its options are unknown.
    """
    if isinstance(decoder, str):
        return decoder, {key: plain(value) for key, value in (options or {}).items()}
    if not is_dataclass(decoder) or isinstance(decoder, type):
        raise ValueError(f"decoder must be a name or an instance of a dataclass, got {decoder!r}")
    made = {each.name: plain(getattr(decoder, each.name)) for each in fields(decoder)}
    return type(decoder).__name__, made


def plain(value: Any) -> Any:
    """A value as JSON; of a tensor, its dtype, shape and hash."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()[:12]}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    text = repr(value)
    return text if len(text) <= SHOWN else f"{type(value).__name__} {digest(text)}"


def file_digests(options: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that options name."""
    found = {}
    for key, value in options.items():
        if type(value) is not str:
            continue
        with suppress(OSError, RuntimeError, ValueError):  # a text that is not a path
            path = Path(value).expanduser()
            if path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


def tokenization(model: dlm.Model) -> str:
    """A hash of everything that turns prompts into ids, and of the special ids."""
    template = None if model.tokenizer is None else model.tokenizer.chat_template
    return digest([model.identity()["tokenizer"], template, asdict(model.spec)])


def device_name(model: dlm.Model) -> str:
    """The name of the device."""
    if model.device.type != "cuda":
        return model.device.type
    return torch.cuda.get_device_name(model.device)
