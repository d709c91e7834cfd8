"""Options of `dlm bench`, each of which several of its commands have."""

from pathlib import Path
from typing import Annotated

from dlm.cli.options import COUNT, JSON, WHOLE, decoding, network, output, run

Device = Annotated[str | None, run(help="Such as cuda.", show_default="cpu")]
Threads = Annotated[int | None, run(help="CPU threads.", show_default="torch's own", **COUNT)]
Repeats = Annotated[int, run(help="Rounds; contenders take turns in each.", **COUNT)]
Out = Annotated[
    Path | None, output(metavar="FILE", help="Append the JSON lines to this file, too.")
]
Json = Annotated[bool, JSON]
ShapeName = Annotated[
    str, network("--shape", help="Random weights: llada-8b, dream-7b, 25m or tiny.")
]
Layers = Annotated[int | None, network(help="Another depth.", show_default="the shape's", **COUNT)]
Dtype = Annotated[
    str,
    network(help="float32, bfloat16 or float16; auto is float32 on a CPU, else bfloat16."),
]
BatchSizes = Annotated[
    list[int] | None,
    decoding("--batch-size", help="Prompts at a time; repeatable.", **COUNT),
]
PromptLength = Annotated[int, decoding(help="Tokens of a prompt.", **COUNT)]
GenLength = Annotated[int, decoding(help="Tokens to decode.", **COUNT)]
BlockLength = Annotated[int, decoding(help="Tokens of a block.", **COUNT)]
Policy = Annotated[str, decoding("--decoder", help="Which tokens to commit: see dlm decoders.")]
Steps = Annotated[
    int | None, decoding(help="Forwards budget.", show_default="as many as it needs", **WHOLE)
]
# In `dlm.cli.options` these two are among the options of sampling, of which there are none here.
AnswerEvery = Annotated[
    int | None,
    decoding(
        help="Forwards until a whole answer is made anew.", show_default="each block", **WHOLE
    ),
]
PromptEvery = Annotated[
    int | None,
    decoding(help="Forwards until a prompt is made anew.", show_default="the answer", **WHOLE),
]
DecodedEvery = Annotated[int | None, decoding(help="Likewise of what is decoded.", **WHOLE)]
CacheName = Annotated[str, decoding("--cache", help="none, prefix or dual.")]
