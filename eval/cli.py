"""`dlm eval`: a command for each task, and commands that read finished runs; `dlm lm-eval`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dlm.cli.inputs import parse_bias, parse_options
from dlm.cli.lists import print_table
from dlm.cli.options import (
    BLOCKS,
    COUNT,
    DECODING,
    JSON,
    NO_BLOCKS,
    REAL,
    WHOLE,
    Adapter,
    AsAuthors,
    BeginSuppressTokens,
    BlockSize,
    Device,
    DeviceMap,
    Dtype,
    FamilyName,
    LogitBias,
    MaskId,
    ModelName,
    Quantize,
    RefreshAnswerEvery,
    RefreshDecodedEvery,
    RefreshPromptEvery,
    Revision,
    StopIds,
    SuffixWindow,
    SuppressTokens,
    TensorParallel,
    advised,
    count,
    decoding,
    output,
    sampling,
    source,
)
from dlm.cli.results import note, print_json, try_file
from dlm.eval.listing import describe
from dlm.eval.lm_eval_cli import lm_eval
from dlm.eval.names import Tasks
from dlm.eval.tasks import TASKS

OPTIONS = (
    *DECODING, "block_length", "max_gen_length", "expand_budget", "broadcast_deletion"
)  # fmt: skip
"""Decoding options that commands have under the same names."""
WORKERS = 2
BUILT_IN_GEN_LENGTH = 128  # upper limit, because the built-in model has 512 positions

PassAt = Annotated[
    list[int] | None,
    output(
        metavar="K",
        help="Print pass@K, for K samples of a problem; repeatable.",
        show_default="powers of two up to the number of samples",
        parser=count,
    ),
]


def task_command(name: str) -> Callable[..., None]:
    """Create the command that runs one task."""

    def command(  # noqa: PLR0913 (the parameters are the command line)
        model: ModelName = None,
        device: Device = None,
        device_map: DeviceMap = None,
        tensor_parallel_size: TensorParallel = 1,
        dtype: Dtype = "auto",
        quantize: Quantize = None,
        revision: Revision = None,
        family: FamilyName = None,
        block_size: BlockSize = None,
        mask_id: MaskId = None,
        stop_ids: StopIds = None,
        adapter: Adapter = None,
        batch_size: Annotated[
            int, source(help="Prompts decoded at once; does not change results.", **COUNT)
        ] = 16,
        template: Annotated[
            list[str] | None,
            source(
                metavar="NAME",
                help='Prompt template; repeatable, or "all".',
                show_default="from the preset, else the first that fits the model",
            ),
        ] = None,
        data: Annotated[
            Path | None,
            source(metavar="FILE", help="Problem file.", show_default="bundled, or the hub"),
        ] = None,
        shots: Annotated[
            Path | None, source(metavar="FILE", help="Solved examples for few-shot templates.")
        ] = None,
        limit: Annotated[
            int | None, source(help="Score only the first N problems.", show_default="all", **COUNT)
        ] = None,
        samples: Annotated[
            int | None,
            source(
                help="Samples per problem, for pass@k; a resumed run may increase it.",
                show_default="as in the folder, else 1",
                **COUNT,
            ),
        ] = None,
        decoder: Annotated[
            str | None,
            decoding(
                help="Decoder, which chooses the tokens to commit: see dlm decoders.",
                show_default="from the preset, else low_confidence",
            ),
        ] = None,
        option: Annotated[
            list[str] | None,
            decoding(
                metavar="KEY=VALUE",
                help="Option of the decoder; repeatable.",
                show_default="from the preset, if it has this decoder",
            ),
        ] = None,
        preset: Annotated[
            str | None,
            decoding(
                metavar="NAME",
                help="Published settings of the task, with decoder and template, for options "
                "not given here: see --list.",
                show_default="the first",
            ),
        ] = None,
        recommended: AsAuthors = False,
        gen_length: Annotated[
            int | None, decoding(help="Tokens to decode after a prompt.", **WHOLE)
        ] = None,
        max_gen_length: Annotated[
            int | None,
            decoding(help="Maximum tokens that blanks may grow to, for DreamOn.", **WHOLE),
        ] = None,
        expand_budget: Annotated[
            int | None,
            decoding(
                help="How often a blank may become two.",
                show_default="twice --max-gen-length",
                **WHOLE,
            ),
        ] = None,
        broadcast_deletion: Annotated[
            bool | None,
            decoding(
                "--broadcast-deletion/--no-broadcast-deletion",
                help="Delete the masks right after a deleted blank, too.",
                show_default="from the preset",
            ),
        ] = None,
        block_length: Annotated[
            int | None,
            decoding(help='Tokens in a block, or "none" for a single block.', **BLOCKS),
        ] = None,
        steps: Annotated[int | None, decoding(help="Budget of forward passes.", **WHOLE)] = None,
        position_temperature: Annotated[
            float | None, decoding(help="Draw positions from softmax(score / this).", **REAL)
        ] = None,
        stop_at_eos: Annotated[
            bool | None,
            decoding("--stop-at-eos/--no-stop-at-eos", help="End at the first stop token."),
        ] = None,
        pad_after_eos: Annotated[
            bool | None,
            decoding(
                "--pad-after-eos/--no-pad-after-eos",
                help="Fill masks after a stop token instead of decoding them.",
            ),
        ] = None,
        confidence_eos_eot_inf: Annotated[
            bool | None,
            decoding(
                "--confidence-eos-eot-inf/--no-confidence-eos-eot-inf",
                help="Commit stop tokens last.",
            ),
        ] = None,
        cache: Annotated[
            str | None,
            decoding(help="Keys and values that later passes reuse: none, prefix or dual."),
        ] = None,
        refresh_every: Annotated[
            int | None, decoding(help="Recompute the whole row every N passes of a block.", **WHOLE)
        ] = None,
        refresh_around: Annotated[
            int | None,
            decoding(help="Tokens on either side of a block to recompute with it.", **WHOLE),
        ] = None,
        refresh_answer_every: RefreshAnswerEvery = None,
        refresh_prompt_every: RefreshPromptEvery = None,
        refresh_decoded_every: RefreshDecodedEvery = None,
        suffix_window: SuffixWindow = None,
        temperature: Annotated[
            float | None, sampling(help="Temperature; 0 takes the most likely token.", **REAL)
        ] = None,
        top_k: Annotated[
            int | None, sampling(help="Sample from the k most likely tokens.", **WHOLE)
        ] = None,
        top_p: Annotated[
            float | None,
            sampling(help="Sample from the most likely tokens that hold this probability.", **REAL),
        ] = None,
        min_p: Annotated[
            float | None,
            sampling(
                help="Sample from tokens with at least this share of the top probability.", **REAL
            ),
        ] = None,
        suppress_tokens: SuppressTokens = None,
        begin_suppress_tokens: BeginSuppressTokens = None,
        logit_bias: LogitBias = None,
        cfg_scale: Annotated[
            float | None, sampling(help="Classifier-free guidance scale; 0 disables it.", **REAL)
        ] = None,
        seed: Annotated[int | None, sampling(help="Seed of all noise.", **WHOLE)] = None,
        folder: Annotated[
            Path | None,
            output(
                "--output",
                metavar="DIR",
                help="Folder of the run; the same command resumes it.",
                show_default="runs/eval/TASK-DECODER-HASH",
            ),
        ] = None,
        workers: Annotated[
            int | None,
            output(
                help="Programs to run in parallel, for tasks that run code.",
                show_default="2",
                **COUNT,
            ),
        ] = None,
        pass_at: PassAt = None,
        unsafe: Annotated[
            bool, output("--unsafe", help="Run generated code even without a sandbox.")
        ] = False,
        list_only: Annotated[
            bool, output("--list", help="Print the task's templates and presets; run nothing.")
        ] = False,
        json: Annotated[bool, JSON] = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k in OPTIONS and v is not None}
        if list_only:
            describe(name, machine=json)
            return
        if not TASKS[name].runs_code and (unsafe or workers is not None):
            raise ValueError(f"--workers and --unsafe are for tasks that run code, not for {name}")
        from dlm.eval.job import Job

        options = given | {"decoder_options": parse_options(option)}
        if block_length == NO_BLOCKS:
            options["block_length"] = None
        if logit_bias:
            options["logit_bias"] = parse_bias(logit_bias)
        if recommended:
            options = advised(options, model, infills=TASKS[name].infills)
        if model is None and "gen_length" not in options and not TASKS[name].infills:
            usual = TASKS[name].preset(preset).options.get("gen_length", BUILT_IN_GEN_LENGTH)
            options["gen_length"] = min(usual, BUILT_IN_GEN_LENGTH)
        Job(
            task=TASKS[name],
            model=model,
            device=device,
            dtype=dtype,
            adapter=adapter,
            facts={
                "family": family,
                "block_size": block_size,
                "mask_id": mask_id,
                "stop_ids": stop_ids,
                "device_map": device_map,
                "tensor_parallel_size": tensor_parallel_size,
                "quantize": quantize,
                "revision": revision,
            },
            templates=template or [],
            preset=preset,
            options=options,
            data=data,
            shots=shots,
            limit=limit,
            batch_size=batch_size,
            output=folder,
            workers=workers or WORKERS,
            unsafe=unsafe,
            machine=json,
            samples=samples,
            pass_at=tuple(pass_at or ()),
        ).run()

    command.__doc__ = TASKS[name].summary
    return command


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="A B ...", help="Folders of runs; A is the baseline.")
    ],
    pass_at: PassAt = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Compare runs problem by problem: exact tests and bootstrap intervals."""
    from dlm.eval.comparison import METHODS
    from dlm.eval.comparison import compare as compare_runs
    from dlm.eval.comparison_tables import as_json, contrast_table, table
    from dlm.eval.counting import DEFINITIONS
    from dlm.eval.folder import read_run
    from dlm.eval.repeats import definitions
    from dlm.eval.summary import execution_note, facts, partial_notes

    if len(folders) < 2:
        raise ValueError(f"compare needs at least two folders, got {len(folders)}")
    runs = [read_run(folder) for folder in folders]
    found = compare_runs(runs, pass_at=pass_at or ())
    ways = execution_note(runs)
    for told in (*partial_notes(runs), *([] if ways is None else [ways])):
        note(told)
    if json:
        for each in found:
            print_json(as_json(each))
        return
    print_table(*table(found))
    head, rows = contrast_table(found)
    if rows:
        typer.echo()
        print_table(head, rows)
    measures = [each.measure for pair in found for each in pair.contrasts]
    repeated = any(run.repeats > 1 for run in runs)
    several = definitions(measures, compared=True) if repeated else []
    for name, meaning in (*several, *DEFINITIONS, *METHODS):
        note(f"{name}: {meaning}")
    for run in runs:
        note(f"{run.folder}: {facts(run)}")


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        output(metavar="FILE", help="HTML page to write.", show_default="report.html"),
    ] = None,
    markdown: Annotated[
        bool, output("--markdown", help="Print a Markdown table instead of writing a page.")
    ] = False,
    pass_at: PassAt = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Write an HTML page about runs: figures, charts, and all samples to browse."""
    from dlm.eval.folder import read_run
    from dlm.eval.job import record
    from dlm.eval.report import markdown as markdown_table
    from dlm.eval.report import write_report
    from dlm.eval.summary import summarise

    if markdown and json:
        raise ValueError("--markdown and --json are two ways to print a table: leave one away")
    if markdown and out is not None:
        raise ValueError(f"--markdown prints a table and writes no page: leave --out {out} away")
    page = out or Path("report.html")
    if not markdown:
        try_file("--out", page)
    runs = [read_run(folder) for folder in folders]
    found = tuple(pass_at or ())
    if markdown:
        typer.echo(markdown_table(runs, pass_at=found))
        return
    write_report(runs, page, pass_at=found)
    if json:
        for row in (row for run in runs for row in summarise(run, pass_at=found)):
            print_json(record(row) | {"page": str(page)})
        return
    note(f"wrote {page}")


def attach(app: typer.Typer) -> None:
    """Add the evaluation commands to those of `dlm`."""
    group = typer.Typer(
        cls=Tasks, no_args_is_help=True, help="Score a model and a decoder on benchmarks."
    )
    for name in TASKS:
        group.command(name, rich_help_panel="Tasks")(task_command(name))
    group.command("compare", rich_help_panel="Runs")(compare)
    group.command("report", rich_help_panel="Runs")(report)
    app.add_typer(group, name="eval")
    everything = {
        "allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []
    }  # fmt: skip
    app.command("lm-eval", context_settings=everything)(lm_eval)
