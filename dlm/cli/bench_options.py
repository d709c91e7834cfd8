"""Options that several commands of `dlm bench` share."""

from pathlib import Path
from typing import Annotated

from dlm.cli.options import COUNT, JSON, WHOLE, decoding, network, output, run

Device = Annotated[str | None, run(help="Device, such as cuda.", show_default="cpu")]
Threads = Annotated[int | None, run(help="CPU threads.", show_default="torch's own", **COUNT)]
Repeats = Annotated[int, run(help="Timing rounds; in each, all contenders take turns.", **COUNT)]
Out = Annotated[
    Path | None, output(metavar="FILE", help="Also append the results to this file as JSON lines.")
]
Json = Annotated[bool, JSON]
ShapeName = Annotated[
    str,
    network(
        "--shape",
        help="Shape of the network, whose weights are random: llada-8b, dream-7b, 25m or tiny.",
    ),
]
Layers = Annotated[
    int | None, network(help="Number of layers.", show_default="the shape's", **COUNT)
]
Dtype = Annotated[
    str,
    network(help="float32, bfloat16 or float16; auto: float32 on a CPU, else bfloat16."),
]
BatchSizes = Annotated[
    list[int] | None,
    decoding("--batch-size", help="Prompts decoded at once; repeatable.", **COUNT),
]
PromptLength = Annotated[int, decoding(help="Tokens in a prompt.", **COUNT)]
GenLength = Annotated[int, decoding(help="Tokens to decode.", **COUNT)]
BlockLength = Annotated[int, decoding(help="Tokens in a block.", **COUNT)]
Policy = Annotated[
    str,
    decoding("--decoder", help="Decoder, which chooses the tokens to commit: see dlm decoders."),
]
Steps = Annotated[
    int | None,
    decoding(help="Budget of forward passes.", show_default="as many as it needs", **WHOLE),
]
# `dlm.cli.options` lists these two under Sampling, a group that `dlm bench` does not have.
AnswerEvery = Annotated[
    int | None,
    decoding(
        help="Minimum number of passes between recomputations of the whole answer.",
        show_default="each block",
        **WHOLE,
    ),
]
PromptEvery = Annotated[
    int | None,
    decoding(
        help="Minimum number of passes between recomputations of the prompt.",
        show_default="with the answer",
        **WHOLE,
    ),
]
DecodedEvery = Annotated[
    int | None, decoding(help="Passes between recomputations of a block's decoded tokens.", **WHOLE)
]
CacheName = Annotated[
    str, decoding("--cache", help="Keys and values to reuse: none, prefix or dual.")
]
