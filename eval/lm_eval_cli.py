"""`dlm lm-eval`: lm-eval's own command with the model "dlm" registered."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import typer

COMMANDS = ("run", "ls", "validate")
HELP = ("-h", "--help")
USAGE = """\
Usage: dlm lm-eval [run] --tasks TASK... [--model_args NAME=VALUE,...] [lm-eval's options]

Score a model and a decoder on lm-eval's tasks. All arguments are passed on to lm-eval; --model is
dlm by default. --model_args accept:

  pretrained       folder or Hugging Face id; by default the built-in model
  decoder, option.NAME, gen_length, block_length, steps, temperature, seed, ...
                   options of dlm.generate; option.NAME is an option of the decoder. They override
                   those of the task
  samples, estimator, order, mc_batch_size
                   options of dlm.log_likelihood, for tasks that score given answers
  greedy           for those tasks: false skips the check whether greedy decoding gives an answer
  dtype, device, batch_size
                   a batch size does not change results

Several processes: torchrun --nproc-per-node N -m dlm lm-eval ...

"""


def lm_eval(context: typer.Context) -> None:
    """Score a model and a decoder on lm-eval's tasks; all arguments are lm-eval's own."""
    given = list(context.args)
    wants_help = not given or given[0] in HELP
    if wants_help:
        typer.echo(USAGE, nl=False)
    if find_spec("lm_eval") is None:
        if wants_help:
            return
        raise ValueError('dlm lm-eval needs lm-eval: pip install -e ".[lm-eval]"')
    if wants_help:
        given = ["run", "--help"]
    else:
        import dlm.eval.lm_eval_model  # noqa: F401 (registers the model)
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-untyped]

    own, sys.argv = sys.argv, ["lm-eval", *complete(given)]
    try:
        cli_evaluate()
    finally:
        sys.argv = own


def complete(given: Sequence[str]) -> list[str]:
    """Complete arguments with lm-eval's command, `run` by default, and with a model to run."""
    command, rest = (given[0], list(given[1:])) if given[0] in COMMANDS else ("run", list(given))
    if command == "run" and not names_model(rest):
        rest = ["--model", "dlm", *rest]
    return [command, *rest]


def names_model(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `run`, or the configuration file that they name, set a model."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-M")
    parser.add_argument("--config", "-C")
    found, _ = parser.parse_known_args(arguments)
    if found.model is not None or found.config is None:
        return found.model is not None

    from lm_eval.config.evaluate_config import EvaluatorConfig  # type: ignore[import-untyped]

    return "model" in EvaluatorConfig.load_yaml_config(found.config)
