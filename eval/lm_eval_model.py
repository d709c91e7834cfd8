"""lm-eval's model "dlm", which uses `dlm.generate` and `dlm.log_likelihoods` for its tasks.

Importing this module registers the model. `--model_args` take the options of those two functions
and of `dlm.load` by their own names; options of the decoder are written `option.<name>`. A task
cannot change what `--model_args` set. What they leave open is set by the task's
`generation_kwargs`, or by `--gen_kwargs`.
"""

import atexit
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Self

import torch
from lm_eval import utils  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.api.registry import register_model  # type: ignore[import-untyped]
from torch import Tensor, distributed
from tqdm import tqdm  # type: ignore[import-untyped]

import dlm
from dlm.eval.decode import decode_rows
from dlm.eval.lm_eval_arguments import (
    HARNESS_DEVICE,
    Arguments,
    cut,
    from_harness,
    read_gen_kwargs,
)
from dlm.eval.lm_eval_requests import Row, groups, keys, report_shortened
from dlm.eval.runner import places
from dlm.eval.world import World
from dlm.options import boolean, integer

BUILT_IN = (None, "", "built-in")
GEN_LENGTH = 256  # if neither model_args nor the task sets it, as in lm-eval
SAMPLES = 128
MC_BATCH_SIZE = 16

log = logging.getLogger(__name__)


@register_model("dlm")
class DLM(TemplateLM):  # type: ignore[misc]
    """A masked-diffusion model and a decoder, with lm-eval's model interface."""

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        """Load a model.

        Args:
            pretrained: folder or Hugging Face id; "built-in" or nothing for the built-in model.
            batch_size: prompts decoded at once, and also rows of a forward pass that scores
                answers, if larger than `mc_batch_size`; does not change results.
            device: such as "cuda"; the CPU by default.
            **arguments: `adapter`, `attn_implementation`, `block_size`, `device_map`, `dtype`,
                `family`, `mask_id`, `merge`, `revision` and `tensor_parallel_size` of `dlm.load`;
                `quantize` ("w8a8", "8bit" or "4bit") in place of its `quantization_config`; the
                options of `dlm.generate`, with those of the decoder as `option.<name>` or together
                as `decoder_options`; `estimator`, `order` and `samples` (or `mc_num`) of
                `dlm.log_likelihood`, whose batch size is `mc_batch_size` and part of the estimate;
                and `greedy`: False skips the check whether greedy decoding gives an answer, and
                reports False.

        Raises:
            ValueError: an argument is unknown, or out of range.
        """
        super().__init__()
        size = int(batch_size) if str(batch_size).isdecimal() else batch_size
        self.batch_size = integer("batch_size", size, least=1)
        given = Arguments.of(arguments)
        self.fixed = given.generate
        self.scoring = {"samples": SAMPLES, **given.score}
        integer("samples", self.scoring["samples"], least=1)
        rows = self.scoring.pop("mc_batch_size", MC_BATCH_SIZE)
        self.scoring["batch_size"] = integer("mc_batch_size", rows, least=1)
        self.greedy = boolean("greedy", self.scoring.pop("greedy", True))
        for name in ("cfg_scale", "seed"):
            if name in self.fixed:
                self.scoring[name] = self.fixed[name]
        self.world = World.of()
        self.name = None if pretrained in BUILT_IN else str(pretrained)
        self.world.check_spread(given.load)
        self.model = dlm.load(self.name, device=self.world.device(device), **given.load)
        if self.model.tokenizer is None:
            raise ValueError(f"lm-eval needs a model with a tokenizer, and {self.name!r} has none")
        self.tokenizer = self.model.tokenizer
        self.added = self.tokenizer.get_added_vocab()
        self.check()
        self._device = self.model.device
        self._rank, self._world_size = self.world.rank, self.world.size
        if self.world.size > 1 and not distributed.is_initialized():
            self.world.join()
            atexit.register(self.world.leave)

    def check(self) -> None:
        """Check all options now, instead of after hours of work."""
        spec = self.model.spec
        token = [next(i for i in range(spec.vocab_size) if i not in spec.banned)]
        dlm.stream(self.model, token, **{"gen_length": 1, **self.fixed})
        list(self.scores([(token, token)]))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """Create the model from model_args as a mapping; they override lm-eval's own flags."""
        harness = from_harness(additional_config)
        if arg_dict.get("device_map") and (additional_config or {}).get("device") == HARNESS_DEVICE:
            del harness["device"]  # the user did not ask for it
        return cls(**{**harness, **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """Create the model from model_args as a text, "name=value,name=value"."""
        return cls.create_from_arg_obj(
            utils.simple_parse_args_string(arg_string), additional_config
        )

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors of all processes."""
        if self.world_size == 1:
            return tensor
        mine = torch.atleast_1d(tensor.cpu())
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        distributed.all_gather(parts, mine)
        return torch.cat(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Collect the objects of all processes at process `dst`."""
        if self.world_size == 1:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        self.world.wait()

    @property
    def max_length(self) -> int:
        """Most tokens of a context and its continuation, without those that close every row."""
        return places(self.model)

    @property
    def max_gen_toks(self) -> int:
        """Tokens to decode if a task does not say."""
        return int(self.fixed.get("gen_length", GEN_LENGTH))

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.model.spec.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token used for an empty context: start of text if there is one, else end of text."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval caches requests."""
        return (self.name or "dlm-built-in").replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Facts to store beside the results."""
        return {
            "dlm_version": dlm.__version__,
            "model_family": self.model.spec.family,
            "model_dtype": str(self.model.network.dtype),
            "generate": {name: str(value) for name, value in self.fixed.items()},
            "log_likelihood": {**self.scoring, "greedy": self.greedy},
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text; None adds a start of text unless the text has one."""
        if add_special_tokens is None:
            start = self.tokenizer.bos_token
            add_special_tokens = not (start and string.startswith(start))
        ids = list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))
        closing = list(self.model.spec.suffix) if add_special_tokens else []
        return ids[: -len(closing)] if closing and ids[-len(closing) :] == closing else ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render chat messages as the text of a prompt."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def fit(self, context: list[int], length: int, what: str) -> list[int]:
        """The end of a context, cut to leave room for `length` tokens.

        Raises:
            ValueError: there is no room for any token of it.
        """
        room = self.max_length - length
        if room < 1:
            raise ValueError(
                f"{what} must be below the model's {self.max_length} positions, got {length}"
            )
        return (context or [self.prefix_token_id])[-room:]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts up to their first stop string, in the order of the requests."""
        rows = self.rows(requests)
        asking: dict[Row, list[Instance]] = defaultdict(list)
        for row, request in zip(rows, requests, strict=True):
            asking[row].append(request)
        texts: dict[Row, str] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), desc="dlm generate_until", disable=hidden) as bar:
            for group in groups(asking):
                for row, text in self.decode(group):
                    texts[row] = text
                    for request in asking[row]:
                        self.cache_hook.add_partial("generate_until", request.args, text)
                    bar.update(len(asking[row]))
        return [texts[row] for row in rows]

    def rows(self, requests: Sequence[Instance]) -> list[Row]:
        """Convert requests to rows; all are checked before the first is decoded."""
        rows = []
        shortened = 0
        refused: dict[str, Any] = {}
        what = "gen_length (of model_args, else the task's max_gen_toks)"
        for request, key in zip(requests, keys(requests), strict=True):
            context, gen_kwargs = request.args
            until, asked = read_gen_kwargs(gen_kwargs)
            refused |= {k: v for k, v in asked.items() if self.fixed.get(k, v) != v}
            options = {"gen_length": GEN_LENGTH, **asked, **self.fixed}
            ours = sorted((k, v) for k, v in options.items() if k not in self.fixed)
            tokens = self.tok_encode(context)
            fitting = self.fit(tokens, options["gen_length"], what)
            shortened += len(fitting) < len(tokens)
            rows.append(Row(tuple(fitting), key, until, tuple(ours)))
        report_shortened(shortened, len(rows), self.max_length)
        for name, value in refused.items():
            log.warning("model_args fix %s=%s: not %s", name, self.fixed[name], value)
        return rows

    def decode(self, group: Sequence[Row]) -> Iterator[tuple[Row, str]]:
        """Decode rows that share options and stop strings; yields each with its text."""
        options = {**dict(group[0].options), **self.fixed}
        if group[0].until:
            options["stop"] = group[0].until
        rows, keys = [row.tokens for row in group], [row.key for row in group]
        for number, one in decode_rows(self.model, rows, keys, self.batch_size, options):
            yield group[number], self.text(group[number], one.tokens[0])

    def text(self, row: Row, tokens: Sequence[int]) -> str:
        """The text of a row up to a stop token or stop string, without special tokens.

        A stop string that is a single added token is also searched for among the tokens, because
        special tokens leave no text.
        """
        ends = {*self.model.spec.stop_ids, *(self.added[s] for s in row.until if s in self.added)}
        kept = list(takewhile(lambda token: token not in ends, tokens))
        text = self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return cut(str(text), row.until)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Score continuations: (estimate of ln p in nats, whether greedy decoding gives it)."""
        pairs = []
        for texts, context, target in requests:
            if not target:
                raise ValueError(f"a continuation must hold at least one token, got {texts!r}")
            pairs.append((self.fit(context, len(target), "a continuation"), target))
        shortened = sum(len(p[0]) < len(r[1]) for p, r in zip(pairs, requests, strict=True))
        report_shortened(shortened, len(pairs), self.max_length)
        found: dict[int, tuple[float, bool]] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(pairs), desc="dlm loglikelihood", disable=hidden) as bar:
            for one in self.scores(pairs, greedy=self.greedy):
                found[one.pair] = (one.log_likelihood, bool(one.greedy))
                self.cache_hook.add_partial("loglikelihood", requests[one.pair][0], found[one.pair])
                bar.update()
        return [found[number] for number in range(len(pairs))]

    def scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], *, greedy: bool = False
    ) -> Iterator[dlm.Likelihood]:
        """Estimate ln p(target | context) in nats for each pair; yields results once done."""
        rows = max(self.batch_size, self.scoring["batch_size"])
        return dlm.log_likelihoods(self.model, pairs, rows=rows, greedy=greedy, **self.scoring)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Estimate ln p(text) in nats: a sum over windows, each with a token of context."""
        totals = []
        hidden = disable_tqdm or self.rank != 0
        for request in tqdm(requests, desc="dlm loglikelihood_rolling", disable=hidden):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(one) for one in windows]
            # A sum of floats depends on its order, and the order of results depends on batch_size.
            scores = sorted(self.scores(pairs), key=lambda one: one.pair)
            total = sum((one.log_likelihood for one in scores), 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            totals.append(total)
        return totals
