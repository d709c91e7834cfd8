"""What a run is to do: its problems and prompts, and the settings that decide its results."""

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
"""Options that `dlm.infill` has beside those of `dlm.generate`, and their defaults."""

NEUTRAL = {"top_p": 1, "min_p": 0}
"""Values by which filters are as good as not given."""
LATER = (
    "logit_bias", "refresh_around", "refresh_answer_every", "refresh_prompt_every",
    "refresh_decoded_every", "suffix_window", "min_p", "pad_after_eos",
)  # fmt: skip
"""Options that a run does not name where they are off."""

NOISES = frozenset({"uniform", "branch_noise"})  # needs of decoders that draw positions
ALL = "all"  # what stands for every template
SHOWN = 200  # characters of an option that is no number or text


@dataclass(frozen=True, slots=True)
class Plan:
    """Problems, templates and options, before a model is there."""

    task: Task
    templates: tuple[AnyTemplate, ...]
    problems: list[Problem]
    data: dict[str, Any]  # where they came from
    shots: dict[str, list[Problem]]  # by template
    options: dict[str, Any]  # of `dlm.generate`, or of `dlm.infill`; defaults included
    samples: int = 1  # of each problem

    @property
    def generation(self) -> dict[str, Any]:
        """Options beside the decoder, as JSON holds them."""
        rest = {k: v for k, v in self.options.items() if k not in ("decoder", "decoder_options")}
        if rest.get("logit_bias"):
            rest["logit_bias"] = {str(token): x for token, x in rest["logit_bias"].items()}
        rest |= {name: None for name, none in NEUTRAL.items() if rest[name] == none}
        # Folders of before there were such options go on.
        kept = {name: x for name, x in rest.items() if x or name not in LATER}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}

    def items(self, model: dlm.Model) -> list[Item]:
        """Every prompt of every template, tokenized, as often as there are samples of it."""
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
    """The templates of these names, or all of them for "all".

    Raises:
        ValueError: an unknown name, one given twice, or "all" beside others.
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
    """The templates of these names; all for "all", the preset's for none, else the model's default.

    Raises:
        ValueError: an unknown name, one given twice, "all" beside others, or a chat template for a
            model without one.
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
    """Options of `dlm.generate`, or of `dlm.infill`: those given, else the preset's, else defaults.

    Decoder options given are put over the preset's; with another decoder than the preset's, which
    has other options, they stand alone.

    Raises:
        ValueError: an unknown option, one of another kind of task, or one that a run sets itself.
    """
    allowed = allowed_options(task)
    chosen = task.preset(preset)
    for name in options:
        refuse_other_kind(task, name)
        known("option", name, allowed)
    found = allowed | dict(chosen.options) | dict(options)
    own = options.get("decoder_options") or {}
    if not isinstance(own, Mapping):
        return found  # which `Settings` refuses
    same = isinstance(found["decoder"], str) and found["decoder"] == chosen.decoder
    merged = (chosen.decoder_options if same else {}) | dict(own)
    return found | {"decoder_options": merged or None}


def allowed_options(task: Task) -> dict[str, Any]:
    """Options that a task takes, and their defaults."""
    parameters = inspect.signature(dlm.generate).parameters.items()
    found = {name: each.default for name, each in parameters if name not in NOT_OPTIONS}
    if task.infills:
        del found["gen_length"]
        found |= {"stop_at_eos": False, **GROWTH}
    return found


def refuse_other_kind(task: Task, name: str) -> None:
    """Refuse an option of tasks that decode otherwise.

    Raises:
        ValueError: it is one.
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
    """Refuse a preset that names tokens of another vocabulary, unless they were given anew.

    Raises:
        ValueError: it does.
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
        ValueError: a bad file, data that cannot be had, `shots` where no template takes any, a
            solved example that is scored as well, or several samples where nothing is drawn.
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
    """Refuse several samples of a problem where they would be one and the same.

    Raises:
        ValueError: `samples` is no int from 1, or above 1 where neither tokens nor positions are
            drawn.
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
    """Whether tokens or positions are drawn, so that noise changes what is decoded."""
    if options["position_temperature"] or (options["temperature"] and options["top_k"] != 1):
        return True
    decoder, own = options["decoder"], options["decoder_options"] or {}
    if not isinstance(own, Mapping):
        return True  # which `Settings` refuses
    if isinstance(decoder, str):
        decoder = dlm.decoders.make(decoder, **own)
    needs = getattr(decoder, "needs", NOISES)  # one that declares none is given noise like all else
    return bool(getattr(decoder, "draws", NOISES.intersection(needs)))


def check_shots(template: Template, problems: Sequence[Problem], shots: Sequence[Problem]) -> None:
    """Refuse solved examples that are problems as well: their prompts would hold the answer.

    Raises:
        ValueError: there is one; names the template and the problem.
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
    """What a template asks of a problem, up to blanks around it: solutions may be worded apart."""
    return template.prompt.format(**{name: each.strip() for name, each in problem.fields.items()})


def settings_of(
    plan: Plan, model: dlm.Model, name: str, execution: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that decides the results of a run, as JSON holds it.

    `execution` is what `Sandbox.facts` tells, of a task that runs code.
    """
    decoder, options = describe_decoder(plan.options["decoder"], plan.options["decoder_options"])
    return {
        "task": plan.task.name,
        "task_version": plan.task.version,
        "metrics": [metric.name for metric in plan.task.metrics],
        # What the problems are; where from, and how many of them, may change from start to start.
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
    """Name and options of a decoder that is a name or an instance.

    Raises:
        ValueError: an instance that does not tell its options, as it is no dataclass.
    """
    if isinstance(decoder, str):
        return decoder, {key: plain(value) for key, value in (options or {}).items()}
    if not is_dataclass(decoder) or isinstance(decoder, type):
        raise ValueError(f"decoder must be a name or an instance of a dataclass, got {decoder!r}")
    made = {each.name: plain(getattr(decoder, each.name)) for each in fields(decoder)}
    return type(decoder).__name__, made


def plain(value: Any) -> Any:
    """A value as JSON holds it; of a tensor what tells it from others."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()[:12]}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    text = repr(value)
    return text if len(text) <= SHOWN else f"{type(value).__name__} {digest(text)}"


def file_digests(options: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the files that options name."""
    found = {}
    for key, value in options.items():
        if type(value) is not str:
            continue
        with suppress(OSError, RuntimeError, ValueError):  # a text that is no path
            path = Path(value).expanduser()
            if path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


def tokenization(model: dlm.Model) -> str:
    """A digest of what turns prompts into ids, and of the ids that mean something."""
    template = None if model.tokenizer is None else model.tokenizer.chat_template
    return digest([model.identity()["tokenizer"], template, asdict(model.spec)])


def device_name(model: dlm.Model) -> str:
    """The device in words."""
    if model.device.type != "cuda":
        return model.device.type
    return torch.cuda.get_device_name(model.device)
