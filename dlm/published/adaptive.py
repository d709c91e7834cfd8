"""Settings in which the certainty of the model decides how many tokens are committed."""

from typing import Final

from dlm.published.setting import INSTRUCT, Paper, Published, lengths

MATH = "all of MATH"
LEAP: Final = {"threshold": 0.9, "relaxed_threshold": 0.75, "radius": 4}
ITERATIONS: Final = {"iterations": 2}
BLOCKS: Final = {"threshold": 0.5, "block_add_threshold": 0.1, "sub_block_length": 32}
AHEAD: Final = {"score": "entropy", "alpha": 0.0, "share": 1.0}
SPREAD: Final = {"threshold": 0.9, "low_threshold": 0.4}
RETEST = "arXiv:2602.06953"  # DAWN, whose authors also ran other decoders

FAST = Paper("fast-dllm", "threshold", f"Wu et al. 2025, arXiv:2505.22618, {INSTRUCT}")
SWEEP = Paper(None, "threshold", f"Wu et al. 2025, arXiv:2505.22618, {INSTRUCT}")
FACTOR = Paper("factor", "factor", f"arXiv:2505.22618 as run by arXiv:2606.02955, {INSTRUCT}")
FRECHET = Paper("frechet", "frechet", f"arXiv:2606.02955, {INSTRUCT}")
BOUND = Paper(None, "entropy_bound", "code of PC-Sampler, arXiv:2508.13021")
DPARALLEL = Paper("dparallel", "entropy_threshold", "arXiv:2509.26488, dParallel-LLaDA")
D3LLM = Paper("d3llm", "multi_block", "arXiv:2601.07568, leaderboard of its code, d3LLM_LLaDA")
MEAN_FIELD = Paper(None, "mean_field", f"arXiv:2606.15805, {INSTRUCT}, threshold not told")
LOPA = Paper(None, "lopa", "code of arXiv:2512.16229, Dream-7B, by the options of D2F-Dream there")
LOCAL_LEAP = Paper("local-leap", "local_leap", f"arXiv:2510.07081, {INSTRUCT}")
DINFER = Paper(None, "hierarchical", "arXiv:2510.08666, LLaDA-1.5")
KLASS = Paper("klass", "klass", f"arXiv:2511.05664, {INSTRUCT}")
LESS = Paper(None, "mutual_stability", "arXiv:2606.16908")
SABER = Paper("saber", "saber", f"arXiv:2510.18165, {INSTRUCT}")
WINO = Paper("wino", "wino", f"arXiv:2507.18578, {INSTRUCT}")
REPORT = Paper(None, "block_refinement", "arXiv:2512.15745, LLaDA2.0-mini")


def _sure(confidence: float, divergence: float) -> dict[str, float]:
    """Options of KLASS."""
    return {"threshold": confidence, "kl_threshold": divergence}


def _drafts(confidence: float) -> dict[str, float]:
    """Options of WINO."""
    return {"threshold": confidence, "threshold_back": 0.9}


ADAPTIVE: tuple[Published, ...] = (
    FAST.on(
        "gsm8k",
        {"threshold": 0.9},
        lengths(256, 32),
        "79.2; 79.3 at 256 forwards with low_confidence",
        3.25,
        note="5-shot",
        template="base_5shot",  # the scripts use lm-eval's prompts, without a chat template
    ),
    FAST.on(
        "math500",
        {"threshold": 0.9},
        lengths(256, 32),
        "33.4; 33.5 at 256 forwards with low_confidence, length 512: 37.2",
        note=f"{MATH}, 4-shot",
        template="base_4shot",
    ),
    FAST.on(
        "humaneval",
        {"threshold": 0.9},
        lengths(256, 32),
        "43.9; 41.5 at 256 forwards with low_confidence",
        note="0-shot",
        template="completion",
    ),
    FAST.on(
        "mbpp",
        {"threshold": 0.9},
        lengths(256, 32),
        "28.4; 29.4 at 256 forwards with low_confidence, length 512: 14.8",
        note="3-shot",
        template="base_3shot",
    ),
    SWEEP.on("a sweep of the threshold", {"threshold": 0.7}, {"block_length": 32}, rate=5.12),
    SWEEP.on("a sweep of the threshold", {"threshold": 0.5}, {"block_length": 32}, rate=7.01),
    FACTOR.on("gsm8k", {"factor": 0.75}, lengths(256, 32), "78.1; 77.6 with threshold", 4.27),
    FRECHET.on("gsm8k", {"delta": 0.25}, lengths(256, 32), "77.2; 77.6 with threshold", 4.63),
    BOUND.on("all of its tasks", {"gamma": 0.01}, {"block_length": None}),
    DPARALLEL.on(
        "gsm8k",
        {"threshold": 0.5},
        lengths(256, 32),
        f"76.1 at 30 forwards; {INSTRUCT}: 75.7 at 256 with low_confidence, 75.5 at 72 with "
        "threshold",
        8.5,
        note="0-shot",
    ),
    DPARALLEL.on(
        "math500",
        {"threshold": 0.5},
        lengths(256, 32),
        f"31.5 at 46 forwards with 4 solved examples, which no chat template of ours has; "
        f"{INSTRUCT}: 33.5 at 256 with low_confidence, 33.2 at 97 with threshold",
        5.6,
        note=f"{MATH}, 4-shot",
    ),
    DPARALLEL.on(
        "humaneval",
        {"threshold": 0.5},
        lengths(256, 32),
        f"40.2 at 33 forwards; {INSTRUCT}: 38.4 at 256 with low_confidence, 37.2 at 77 with "
        "threshold",
        7.8,
        note="0-shot",
    ),
    DPARALLEL.on(
        "mbpp",
        {"threshold": 0.45},
        lengths(256, 32),
        "40.8 at 24 forwards with 3 solved examples, as templates chat_3shot and base_3shot have; "
        f"{INSTRUCT}: 42.4 at 256 with low_confidence, 41.6 at 68 with threshold",
        10.7,
        note="3-shot",
    ),
    D3LLM.on(
        "gsm8k",
        BLOCKS,
        lengths(256),
        f"73.09; {INSTRUCT}: 72.55 at 256 forwards",
        9.11,
        note="0-shot",
    ),
    D3LLM.on("humaneval", BLOCKS, lengths(256), f"39.63; {INSTRUCT}: 38.28 at 256 forwards", 5.95),
    MEAN_FIELD.on("gsm8k", ITERATIONS, {"gen_length": 256}, "76.34, 4.93 times as fast"),
    MEAN_FIELD.on("math500", ITERATIONS, {"gen_length": 256}, "31.10, 4.07 times", note=MATH),
    MEAN_FIELD.on("humaneval", ITERATIONS, {"gen_length": 256}, "40.70, 4.88 times as fast"),
    MEAN_FIELD.on("mbpp", ITERATIONS, {"gen_length": 256}, "28.08, 6.10 times as fast"),
    LOPA.on(
        "gsm8k", AHEAD, {}, "73.3; 72.6 at 2.1 tokens a forward with threshold", 3.1, note="4-shot"
    ),
    LOPA.on("math500", AHEAD, {}, "37.0; 37.6 at 1.9 with threshold", 3.4, note=f"{MATH}, 4-shot"),
    LOPA.on("humaneval", AHEAD, {}, "53.0; 55.5 at 1.8 with threshold", 2.9),
    LOPA.on("mbpp", AHEAD, {}, "54.8; 55.6 at 1.9 with threshold", 3.3, note="3-shot"),
    LOCAL_LEAP.on(
        "gsm8k", LEAP, lengths(512, 32), f"length 256: 77.33, 4.28 times as fast ({RETEST})"
    ),
    LOCAL_LEAP.on(
        "math500", LEAP, lengths(256, 32), f"32.42, 3.34 times as fast ({RETEST})", note=MATH
    ),
    LOCAL_LEAP.on("humaneval", LEAP, lengths(256, 32), f"39.63, 4.15 times as fast ({RETEST})"),
    LOCAL_LEAP.on("mbpp", LEAP, lengths(256, 32), f"30.80, 4.66 times as fast ({RETEST})"),
    LOCAL_LEAP.on("IFEval", LEAP, lengths(512, 32)),
    DINFER.on("gsm8k", SPREAD, {}, "83.70; 83.32 at 3.1 tokens a forward with threshold", 4.25),
    DINFER.on("humaneval", SPREAD, {}, "45.12", 4.2),
    KLASS.on(
        "gsm8k",
        _sure(0.6, 0.015),
        lengths(256, 64),
        "76.50 at 98.6 forwards; 75.13 at 256 with low_confidence",
        2.6,
    ),
    KLASS.on(
        "math500",
        _sure(0.6, 0.01),
        lengths(256, 64),
        "33.8 at 128.6 forwards; 31.4 at 256 with low_confidence",
        1.99,
        note=MATH,
    ),
    KLASS.on(
        "humaneval",
        _sure(0.9, 0.01),
        lengths(256, 64),
        "40.85 at 92.0 forwards; 39.63 at 256 with low_confidence",
        2.78,
    ),
    KLASS.on("mbpp", _sure(0.7, 0.01), lengths(256, 64), f"27.00, 2.39 times as fast ({RETEST})"),
    LESS.on(
        "mean of 7 tasks, three models, one of them by another rule",
        {"threshold": 0.75, "drift": 0.04, "patience": 2},
        lengths(256, 32),
        rate=3.58,
    ),
    SABER.on(
        "humaneval",
        {"n": 2, "mu": 8},
        lengths(256),
        "45.12 at about 72 forwards; 43.29 at 256 with low_confidence",
        3.6,
    ),
    SABER.on(
        "mbpp",
        {"n": 2, "mu": 8},
        lengths(256),
        "44.76; 42.86 at 256 forwards with low_confidence",
    ),
    WINO.on(
        "gsm8k",
        _drafts(0.6),
        lengths(256, 128),
        "75.82 at 41.93 forwards; 73.24 at 256 with low_confidence",
        6.11,
    ),
    WINO.on("math500", _drafts(0.7), lengths(256, 128), "74.44 forwards", 3.44),
    WINO.on("humaneval", _drafts(0.7), lengths(256, 128), "93.32 forwards", 2.74),
    WINO.on("mbpp", _drafts(0.8), lengths(256, 128)),
    WINO.on("sudoku", _drafts(0.7), lengths(256, 128)),
    WINO.on("countdown", _drafts(0.5), lengths(256, 128)),
    WINO.on("ARC-E", _drafts(0.5), lengths(256, 128), "81.19 at 40.19 forwards", 6.37),
    REPORT.on("mean of the report", {"threshold": 0.95}, {"block_length": 32}, "70.15", 2.55),
    REPORT.on("mean of the report", {"threshold": 0.85}, {"block_length": 32}, "67.90", 3.31),
)
