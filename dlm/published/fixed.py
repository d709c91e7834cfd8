"""Settings that commit one token per forward pass, or by a schedule independent of the model."""

from typing import Final

from dlm.published.setting import INSTRUCT, Paper, Published, lengths

LLADA = "Nie et al. 2025, arXiv:2502.09992, EVAL.md"
LLADA_1_5 = "LLaDA 1.5, EVAL.md"
PC_SAMPLER = "Huang et al. 2025, arXiv:2508.13021"

LAST: Final = {"confidence_eos_eot_inf": True}
NO_EOS: Final = {"suppress_tokens": (126081,)}  # the end-of-text token of LLaDA
USUAL: Final = {"lambda_": 0.25, "alpha": 10}  # of PC-Sampler
LOOPS: Final = {"init_unmask_ratio": 0.875, "unmask_k": 1, "loop_steps": 32}  # of its ReMDM
NO_LOOPS: Final = {"init_unmask_ratio": 1.0, "unmask_k": 1, "loop_steps": 0}

BASELINE = Paper("one-by-one", "low_confidence", f"baseline of arXiv:2505.22618, {INSTRUCT}")
SEMI_AR = Paper("llada-semi-ar", "low_confidence", f"{LLADA}, {INSTRUCT}")
PURE = Paper("llada-pure", "low_confidence", f"{LLADA}, {INSTRUCT}")
BASE = Paper("llada-base", "low_confidence", f"{LLADA}, LLaDA-8B-Base")
NEWER = Paper("llada-1.5", "low_confidence", LLADA_1_5)
PC = Paper("pc-sampler", "pc_sampler", f"{PC_SAMPLER}, {INSTRUCT}")
REMDM = Paper("remdm", "remdm", f"ReMDM in the code of PC-Sampler, arXiv:2508.13021, {INSTRUCT}")
DUS = Paper("dus", "dilated", f"arXiv:2506.19037, {INSTRUCT}")
DREAM = Paper(None, "dream", "arXiv:2508.15487")
DREAMON = Paper("dreamon", "entropy", "arXiv:2602.01326, README of its code, DreamOn-v0-7B")
GROWS: Final = {
    "block_length": None, "max_gen_length": 64, "temperature": 0.2, "top_p": 0.9,
}  # fmt: skip

FIXED: tuple[Published, ...] = (
    BASELINE.on(
        "gsm8k",
        {},
        lengths(256, 32),
        "79.3 at 256 forwards with 5 solved examples, template base_5shot; 75.7 with none, as in "
        "arXiv:2509.26488",
        1.0,
        note="5-shot",
    ),
    BASELINE.on(
        "humaneval",
        {},
        lengths(256, 32),
        "41.5 at 256 forwards with template completion; 38.4 in arXiv:2509.26488",
        1.0,
        note="0-shot",
    ),
    BASELINE.on(
        "mbpp",
        {},
        lengths(256, 32),
        "29.4 at 256 forwards with 3 solved examples, template base_3shot; 42.4 with 3 in "
        "arXiv:2509.26488",
        1.0,
        note="3-shot",
    ),
    SEMI_AR.on("gsm8k", {}, lengths(256, 8), "78.6 at 256 forwards", 1.0),
    SEMI_AR.on("math500", {}, lengths(512, 64), "42.2 at 512 forwards", 1.0, note="all of MATH"),
    PURE.on("gsm8k", {}, lengths(512) | LAST, "69.4 at 512 forwards", 1.0),
    PURE.on("math500", {}, lengths(512) | LAST, "31.9 at 512 forwards", 1.0, note="all of MATH"),
    PURE.on("humaneval", {}, lengths(512) | NO_EOS, "49.4 at 512 forwards", 1.0),
    PURE.on("mbpp", {}, lengths(256) | LAST, "41.0 at 256 forwards", 1.0),
    BASE.on("gsm8k", {}, lengths(1024), "70.3 at 1024 forwards; length 512: 70.8, 256: 70.0", 1.0),
    BASE.on(
        "humaneval", {}, lengths(1024), "35.4 at 1024 forwards; length 512: 32.9, 256: 32.9", 1.0
    ),
    BASE.on("mbpp", {}, lengths(1024), "40.0 at 1024 forwards; length 512: 39.2, 256: 40.2", 1.0),
    NEWER.on("gsm8k", {}, lengths(256, 16) | LAST, "83.8 at 256 forwards", 1.0),
    NEWER.on(
        "math500", {}, lengths(1024, 128) | LAST, "42.6 at 1024 forwards", 1.0, note="all of MATH"
    ),
    NEWER.on("humaneval", {}, lengths(512, 32) | LAST, "52.4 at 512 forwards", 1.0),
    NEWER.on("mbpp", {}, lengths(512, 32) | LAST, "42.8 at 512 forwards", 1.0),
    PC.on(
        "gsm8k",
        USUAL,
        lengths(256),
        "82.2 at 256 forwards with the authors' token frequencies",
        1.0,
        note="4-shot",
        template="base_4shot",  # the script uses lm-eval's gsm8k with 4 examples
    ),
    PC.on("math500", USUAL, lengths(1024), rate=1.0),
    PC.on("humaneval", USUAL, lengths(256), rate=1.0),
    PC.on("mbpp", USUAL, lengths(128), rate=1.0),
    PC.on("sudoku", USUAL | {"lambda_": 0.0}, lengths(128), rate=1.0),
    PC.on("countdown", USUAL | {"lambda_": 0.5}, lengths(128), rate=1.0),
    PC.on("GPQA", USUAL, lengths(256), rate=1.0, note="5-shot"),
    REMDM.on("gsm8k", LOOPS, lengths(256), note="4-shot", template="base_4shot"),
    REMDM.on("math500", LOOPS, lengths(1024)),
    REMDM.on("humaneval", LOOPS, lengths(256)),
    REMDM.on("mbpp", LOOPS, lengths(128)),
    REMDM.on("sudoku", NO_LOOPS, lengths(128)),
    REMDM.on("countdown", NO_LOOPS, lengths(128)),
    DUS.on(
        "gsm8k",
        {"base": 2},
        lengths(256, 32),
        "65.73 at 40 forwards; 38.74 at as many with low_confidence",
        6.4,
    ),
    DREAMON.on("humaneval_infill", {}, GROWS, template="blanks_4"),
    DREAMON.on("humaneval_infill_multi", {}, GROWS, template="blanks_4"),
    DREAM.on("Dream-7B", {"alg": "entropy"}, {"temperature": 0.2, "top_p": 0.95}),
)
