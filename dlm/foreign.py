"""Hints for users of other programs: their names for our options, and what to use instead.

Plain data for the error messages of `dlm.options.known`. The names are those in the authors'
code of LLaDA, Dream, DreamOn, Fast-dLLM, dLLM-Cache, dInfer, SDAR, JetEngine, LLaDA2, MDLM,
ReMDM, WINO, KLASS, PC-Sampler, d2Cache, d3LLM, LoPA, Information-Gain-Sampler, Prophet, diffusers
and transformers. A text continues the message "unknown option 'name': ". What it gives in the
form name=value can be passed as it stands; docs/migrating.md says how results differ.
"""

from typing import Final

LENGTHS: Final = ("max_new_tokens", "max_tokens", "max_gen_toks", "max_length", "generation_length")
STEPS: Final = (
    "denoising_steps",
    "diffusion_steps",
    "num_inference_steps",
    "num_steps",
    "sampling_steps",
    "steps_per_block",
)
STOPS: Final = ("early_stop", "eos_early_stop", "stop_until_eos")
CACHES: Final = ("kv_cache", "use_cache", "use_kv_cache")
TEXTS: Final = ("stop_strings", "until")
HOOKS: Final = ("callback_on_step_end", "generation_tokens_hook_func", "step_callback", "streamer")

_DYNAMIC = "in dlm it is decoder='block_refinement' with decoder_options={'threshold': 0.85}"
_KLASS = (
    "in dlm it is decoder='klass' with decoder_options={'threshold': 0.9, 'kl_threshold': 0.01}"
)
_EB = "in dlm it is decoder='entropy_bound' with decoder_options={'gamma': 0.1}"
_DREAM = "in dlm it is decoder='dream' with decoder_options={'alg': '%s'}"
_REMDM = "in dlm it is decoder='remdm' with decoder_options={'variant': '%s'}"
_MULTI = (
    "in dlm it is decoder='multi_block' with decoder_options={'block_add_threshold': 0.1} and "
    "block_length=None"
)
_DEFERRED = (
    "in dlm it is decoder='deferred_commitment' with decoder_options={'window': 32} and "
    "block_length=None"
)
_ADAPTIVE = (
    "in dlm it is decoder='adaptive_block' with decoder_options={'delimiter_ids': [198]} and "
    "block_length=None"
)
_LOPA = "in dlm it is decoder='lopa' with decoder_options={'%s': %s}"
_GAIN = "in dlm it is decoder='info_gain' with decoder_options={'%s': %s}"
_PRIOR = "in dlm it is decoder='certainty_prior' with decoder_options={'sigma': 10.0}"
_PROPHET = "in dlm it is decoder='prophet' with decoder_options={'early_threshold': 7.5}"
_ANSWER = "in dlm it is decoder='prophet' with decoder_options={'answer_start': 3}, less the prompt"
_EDITS = (
    "in dlm it is decoder='block_refinement' with "
    "decoder_options={'threshold': 0.7, 'editing_threshold': 0.5}"
)
_WINO = "in dlm it is decoder='wino' with decoder_options={'threshold': 0.6, 'threshold_back': 0.9}"
_PC = "in dlm it is decoder='pc_sampler' with decoder_options={'lambda_': 0.25}"
_LESS = (
    "in dlm it is decoder='mutual_stability' with decoder_options={'drift': 0.04, 'patience': 2}"
)
_STREAM = (
    "in dlm it is decoder='wedlm' with decoder_options={'threshold': 0.4, 'penalty': 0.02, "
    "'window': 16, 'sliding': True} and block_length=1"
)
_SLOW_FAST = "the nearest is decoder='threshold' with suffix_window, the masks behind a block"
_COPIES = "give the prompt that often: every row has noise of its own, at temperature=1.0 say"
_STEPS = "in dlm it is steps, the forwards of a row in all blocks together"
_SAMPLE = "temperature=1.0 samples, temperature=0.0 takes the likeliest token"
_HISTORY = "return_trajectory=True keeps what each forward saw and changed"
_IDS = "token ids are the prompt itself: lists of ints, of any lengths, without padding"

OPTIONS: Final[dict[str, str]] = {
    **dict.fromkeys(LENGTHS, "in dlm it is gen_length, the tokens behind the prompt"),
    **dict.fromkeys(STEPS, _STEPS),
    **dict.fromkeys(STOPS, "in dlm it is stop_at_eos=True, which is the default"),
    **dict.fromkeys(CACHES, "in dlm it is cache='prefix', cache='dual' or cache='none'"),
    **dict.fromkeys(TEXTS, "in dlm it is stop=['###'], texts that end a row"),
    **dict.fromkeys(HOOKS, "dlm.stream yields a snapshot after each forward"),
    # LLaDA
    "remasking": "in dlm it is decoder='low_confidence' or decoder='random'",
    "cfg": "in dlm it is cfg_scale",
    "guidance_scale": "in dlm it is cfg_scale, which is guidance_scale - 1",
    "logits_eos_inf": "in dlm it is suppress_tokens=[model.spec.eos_id]",
    "mask_id": "it is a fact of the model: dlm.load has mask_id, for files that do not say it",
    "mask_token_id": "it is a fact of the model: dlm.load has mask_id",
    # Dream
    "alg": "in dlm it is decoder='dream' with decoder_options={'alg': 'entropy'}",
    "alg_temp": "in dlm it is position_temperature",
    "output_history": _HISTORY,
    # Fast-dLLM, dInfer, dLLM-Cache
    "threshold": "in dlm it is decoder='threshold' with decoder_options={'threshold': 0.9}",
    "factor": "in dlm it is decoder='factor' with decoder_options={'factor': 1.0}",
    "dual_cache": "in dlm it is cache='dual'",
    "prefix_cache": "in dlm it is cache='prefix'",
    "parallel_decoding": "in dlm it is decoder='threshold' or decoder='hierarchical'",
    "use_credit": "in dlm it is decoder='credit'",
    **dict.fromkeys(
        ("prefix_look", "after_look"), "in dlm it is refresh_around, on both sides of a block"
    ),
    "transfer_ratio": "it has no like: between two intervals all of a block is computed anew",
    "warmup_steps": "it has no like: the first forward of a block computes the whole row",
    "cont_weight": "it has no like: what a forward is given is tokens",
    "gen_interval_steps": "in dlm it is refresh_answer_every, beside cache='dual', refresh_every=1",
    "prompt_interval_steps": "in dlm it is refresh_prompt_every, beside cache='dual'",
    # dKV-Cache, DPad
    "suffix_dropout": "in dlm it is suffix_window, the masks behind a block that a forward sees",
    "cache_steps": "in dlm it is refresh_every, beside cache='dual', refresh_decoded_every=1000",
    "cache_type": "in dlm it is cache='dual' with refresh_decoded_every",
    # SDAR, JetEngine, LMDeploy
    "remasking_strategy": "in dlm it is decoder='block_refinement' for low_confidence_dynamic, "
    "decoder='low_confidence' for low_confidence_static, decoder='left_to_right' for sequential",
    "confidence_threshold": _DYNAMIC,
    "dynamic_threshold": "in dlm it is decoder='block_refinement' with "
    "decoder_options={'threshold': 0.9}",
    "edit_threshold": _EDITS,
    "minimal_topk": "in dlm it is steps, which bounds the forwards of a row",
    "stopping_criteria_idx": "it is a fact of the model: dlm.load has stop_ids",
    # MDLM, ReMDM
    "p": "in dlm it is top_p, beside temperature=1.0",
    "sampler": "in dlm it is decoder='ancestral' or decoder='remdm'",
    "mc_num": "in dlm it is samples of dlm.log_likelihood",
    # WINO, PC-Sampler, LESS, DCD
    **dict.fromkeys(("wide_in_thres", "narrow_out_thres"), _WINO),
    **dict.fromkeys(("lambd", "baseline_name"), _PC),
    **dict.fromkeys(("drift_threshold", "persistence_len"), _LESS),
    **dict.fromkeys(
        ("initial_window_length", "window_type", "decode_algo", "decode_param"), _DEFERRED
    ),
    "remdm_number": _REMDM % "llada_remdm",
    # KLASS
    "conf_threshold": _KLASS,
    "kl_history_length": "in dlm it is decoder='klass' with decoder_options={'history': 2}",
    # d3LLM
    "block_add_threshold": _MULTI,
    "decoded_token_threshold": f"it changes nothing up to 1: {_MULTI}",
    "cache_delay_iter": "the nearest is cache='prefix', which keeps what is in front of a block",
    # AdaBlock
    **dict.fromkeys(("delimiter_ids", "delimiter_threshold", "init_block_length"), _ADAPTIVE),
    # LoPA
    "branching_factor": _LOPA % ("branches", 4),
    "branch_topp": _LOPA % ("share", 0.5),
    "selection_conf_alpha": _LOPA % ("alpha", 0.5),
    "sampling_strategy": _LOPA % ("score", "'confidence'"),
    "skip_threshold": _LOPA % ("threshold", 0.9),
    # Information-Gain-Sampler
    "candidate_number": _GAIN % ("branches", 8),
    # d2Cache, Prophet
    "sigma": _PRIOR,
    "analyze_gap": "in dlm it is decoder='prophet'",
    "answer_start_pos": _ANSWER,
    "early_exit_thresholds": _PROPHET,
    "enable_early_exit": "in dlm it is decoder='prophet'",
    # DreamOn
    **dict.fromkeys(
        ("broadcast_deletion", "expand_budget", "max_gen_length"),
        "it is for dlm.infill and its blanks",
    ),
    "number_transfer_tokens": "one token a forward is what decoder='entropy' takes without steps",
    "pad_delete_to_right": "in dlm.infill it is broadcast_deletion",
    # transformers, diffusers, OpenAI's API
    "n": _COPIES,
    "num_return_sequences": _COPIES,
    "do_sample": _SAMPLE,
    "generator": "in dlm it is seed, and row_keys for each row: no generator is drawn from",
    "return_dict_in_generate": "it is always so: out.tokens, out.texts, out.forwards",
    "eos_id": "it is a fact of the model: dlm.load has stop_ids",
    "shift": "it is a fact of the model",
    # DiffuLLaMA
    "logits_temp": "in dlm it is temperature=0.9",
    # WeDLM
    **dict.fromkeys(
        ("wedlm_entropy_threshold", "wedlm_pos_penalty_factor", "wedlm_window_size"), _STREAM
    ),
    "topp_temp": "in dlm it is top_p=0.9, beside temperature=0.9",
    "eos_token_id": "it is a fact of the model: dlm.load has stop_ids",
    "input_ids": _IDS,
    "attention_mask": _IDS,
    "tokenizer": "it is the model's own: model.tokenizer",
    "block_size": "in dlm it is block_length; block_size of dlm.load is that of the attention",
    **dict.fromkeys(
        ("guided_json", "json_schema", "response_format", "structured_outputs"),
        "in dlm it is constraint, made by dlm.Constraint.json_schema(model, schema)",
    ),
    **dict.fromkeys(
        ("guided_regex", "regex"),
        "in dlm it is constraint, made by dlm.Constraint.regex(model, pattern)",
    ),
    **dict.fromkeys(
        ("choice", "choices", "guided_choice"),
        "in dlm it is constraint, made by dlm.Constraint.choice(model, texts)",
    ),
    **dict.fromkeys(
        ("grammar", "guided_grammar"), "constraint takes regular expressions and JSON schemas"
    ),
    "device": "it is where dlm.load put the model: dlm.load has device",
    "dtype": "it is as dlm.load made the model: dlm.load has dtype",
}
"""For options of `dlm.generate`."""

LOAD: Final[dict[str, str]] = {
    "torch_dtype": "in dlm it is dtype='auto' or dtype='bfloat16'",
    "trust_remote_code": "leave it out: no code that lies beside a checkpoint is run",
    "quantization": "in dlm it is quantization_config, as in transformers",
}
"""For options of `dlm.load`."""

DECODERS: Final[dict[str, str]] = {
    # LLaDA, Dream, MaskGIT
    **dict.fromkeys(
        ("confidence", "llada", "max_prob", "maxprob", "vanilla"),
        "in dlm it is decoder='low_confidence'",
    ),
    **{alg: _DREAM % alg for alg in ("maskgit_plus", "origin", "topk_margin")},
    "maskgit": "the nearest is decoder='low_confidence', with counts that are even over the steps",
    "uniform": "in dlm it is decoder='random'",
    "top_k_margin": "in dlm it is decoder='margin', of the model's own law, "
    "or decoder='dream' with decoder_options={'alg': 'topk_margin'}",
    # SDAR, JetEngine, LMDeploy, SGLang, LLaDA2
    "low_confidence_dynamic": _DYNAMIC,
    "low_confidence_static": "in dlm it is decoder='low_confidence'",
    "sequential": "in dlm it is decoder='left_to_right'",
    "entropy_bounded": _EB,
    **dict.fromkeys(("joint_threshold", "jointthreshold"), _EDITS),
    "lowconfidence": "SGLang's is decoder='block_refinement', LLaDA's decoder='low_confidence'",
    "llada2": "in dlm it is decoder='block_refinement'",
    # papers
    **dict.fromkeys(("eb", "eb_sampler", "ebsampler"), _EB),
    **dict.fromkeys(
        ("confidence_threshold", "fast_dllm", "fastdllm", "parallel"),
        "in dlm it is decoder='threshold' or decoder='factor'",
    ),
    **dict.fromkeys(("ar", "autoregressive", "l2r"), "in dlm it is decoder='left_to_right'"),
    **dict.fromkeys(
        ("block_diffusion", "semi_ar", "semi_autoregressive"),
        "in dlm it is block_length=32, with any decoder",
    ),
    "d_parallel": "in dlm it is decoder='entropy_threshold'",
    "dparallel": "in dlm it is decoder='entropy_threshold'",
    **dict.fromkeys(("d3_llm", "d3llm", "full_attn_multi_block", "multiblock"), _MULTI),
    **dict.fromkeys(
        ("discrete_diffusion_forcing", "multi_bd", "multi_block_diffusion"),
        "in dlm it is decoder='d2f'",
    ),
    **dict.fromkeys(("lookahead", "lookahead_parallel_decoding"), "in dlm it is decoder='lopa'"),
    **dict.fromkeys(
        ("ig", "info_gain_sampler", "information_gain"), "in dlm it is decoder='info_gain'"
    ),
    **dict.fromkeys(
        ("self_spec", "self_speculative", "self_speculative_decoding", "speculative"),
        "in dlm it is decoder='ssd' with decoder_options={'branches': 4}",
    ),
    "lookum": _GAIN % ("variant", "'lookum'"),
    "lsd": "in dlm it is decoder='schedule' with its path, a file that dlm distill schedule writes",
    "uncode": "in dlm it is decoder='pc_sampler'",
    "linear_position": "in dlm it is decoder='pc_sampler' with "
    "decoder_options={'weight': 'linear'}",
    "thresholdparalleldecoder": "in dlm it is decoder='threshold'",
    "creditthresholdparalleldecoder": "in dlm it is decoder='credit'",
    **dict.fromkeys(("hierarchy", "hierarchydecoder"), "in dlm it is decoder='hierarchical'"),
    "hierarchy_remask": "in dlm it is decoder='hierarchical' with decoder_options={'remask': True}",
    **dict.fromkeys(
        ("credit_decoding", "credit_threshold", "creditdecoding"), "in dlm it is decoder='credit'"
    ),
    "certainty_density": _PRIOR,
    "early_exit": "in dlm it is decoder='prophet'",
    "mean_field_parallel_decoding": "in dlm it is decoder='mean_field'",
    **dict.fromkeys(("slow_fast", "slow_fast_sampling", "slowfast"), _SLOW_FAST),
    **dict.fromkeys(("adablock", "ada_block", "adablock_dllm"), _ADAPTIVE),
    **dict.fromkeys(("dcd", "deferred_commitment_decoding", "sliding_window"), _DEFERRED),
    "less": "in dlm it is decoder='mutual_stability'",
    **dict.fromkeys(("streaming", "streaming_parallel_decoding"), "in dlm it is decoder='wedlm'"),
    "dus": "in dlm it is decoder='dilated'",
    # MDLM, BD3LM, ReMDM
    **dict.fromkeys(("fhs", "first_hitting_sampler"), "in dlm it is decoder='first_hitting'"),
    **dict.fromkeys(("ddpm_cache", "mdlm"), "in dlm it is decoder='ancestral'"),
    "ddpm": "in dlm it is decoder='ancestral' with decoder_options={'cached': False}",
    "bd3lm": "in dlm it is decoder='first_hitting', with block_length of the network's blocks",
    **{f"remdm_{each}": _REMDM % each for each in ("cap", "conf", "loop", "rescale")},
    "llada_remdm": _REMDM % "llada_remdm",
}
"""For names of decoders, in lower case with underscores."""

OF_DECODERS: Final[dict[str, dict[str, str]]] = {
    "entropy_bound": {"threshold": "in dlm it is gamma=0.1, nats"},
    "entropy_threshold": {"entropy_threshold": "in dlm it is threshold=0.5, nats"},
    "multi_block": {
        **dict.fromkeys(
            ("block_length", "block_size"),
            "in dlm it is sub_block_length=32, in one block that holds several",
        ),
        "decoded_token_threshold": "it changes nothing up to 1 beside block_add_threshold=0.1",
        "entropy_threshold": "in dlm it is threshold=0.5, nats",
    },
    "d2f": {
        **dict.fromkeys(("accept_threshold", "skip_threshold"), "in dlm it is threshold=0.9"),
        **dict.fromkeys(
            ("block_length", "block_size"), "it is block_length, an option of dlm.generate"
        ),
        "complete_threshold": "in dlm it is decoded_token_threshold=0.95",
    },
    "wedlm": {
        **dict.fromkeys(
            ("entropy_threshold", "wedlm_entropy_threshold"), "in dlm it is threshold=0.4, nats"
        ),
        **dict.fromkeys(
            ("pos_penalty_factor", "wedlm_pos_penalty_factor"),
            "in dlm it is penalty=0.02, nats for each position",
        ),
        **dict.fromkeys(("wedlm_window_size", "window_size"), "in dlm it is window=16"),
    },
    "mutual_stability": {
        "conf_threshold": "in dlm it is threshold=0.75",
        "drift_threshold": "in dlm it is drift=0.04, nats",
        "persistence_len": "in dlm it is patience=2, forwards",
    },
    "remdm": {
        "remdm_number": "in dlm it is unmask_k=1 with variant='llada_remdm'",
    },
    "adaptive_block": {
        **dict.fromkeys(
            ("block_length", "init_block_length"),
            "in dlm it is sub_block_length=32, in one block that holds several",
        ),
    },
    "deferred_commitment": {
        "initial_window_length": "in dlm it is window=32, masks",
        "max_window_length": "in dlm it is max_window=128, positions",
        "decode_param": "in dlm it is threshold=0.9",
    },
    "lopa": {
        "branching_factor": "in dlm it is branches=4, the anchor included",
        "branch_topp": "in dlm it is share=0.5",
        "selection_conf_alpha": "in dlm it is alpha=0.5",
        "sampling_strategy": "in dlm it is score='confidence' for default, score='entropy' for "
        "neg_entropy, score='margin'",
        "skip_threshold": "in dlm it is threshold=0.9",
    },
    "info_gain": {
        "candidate_number": "in dlm it is branches=8",
        "position_temperature": "in dlm it is candidate_temperature=0.2",
        "tokens_per_step": "in dlm it is steps, forwards of the row, an option of dlm.generate",
    },
    "klass": {
        "conf_threshold": "in dlm it is threshold=0.9",
        "kl_history_length": "in dlm it is history=2",
    },
    "pc_sampler": {
        "lambd": "in dlm it is lambda_=0.25",
        "lambda": "in dlm it is lambda_=0.25",
        "baseline_name": "in dlm it is frequencies='model', or a file of them",
    },
    "wino": {
        "wide_in_thres": "in dlm it is threshold=0.6",
        "narrow_out_thres": "in dlm it is threshold_back=0.9",
    },
    "prophet": {
        "answer_start_pos": "in dlm it is answer_start=3, counted behind the prompt",
        "early_exit_thresholds": "in dlm it is early_threshold=7.5, mid_threshold=5.0 and "
        "late_threshold=2.5",
    },
    "dream": {"alg_temp": "in dlm it is position_temperature, an option of dlm.generate"},
}
"""For options of our decoders, by decoder."""

FUNCTIONS: Final[dict[str, str]] = {
    "diffusion_generate": "in dlm it is dlm.generate",
    "block_diffusion_generate": "in dlm it is dlm.generate",
    "generate_with_prefix_cache": "in dlm it is dlm.generate with cache='prefix'",
    "generate_with_dual_cache": "in dlm it is dlm.generate with cache='dual'",
    "from_pretrained": "in dlm it is dlm.load",
    "stream_generate": "in dlm it is dlm.stream",
    "get_log_likelihood": "in dlm it is dlm.log_likelihood",
}
"""For functions of `dlm`."""
