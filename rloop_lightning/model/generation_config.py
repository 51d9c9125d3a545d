"""generation_config.json of a trained policy: `generate` of transformers then samples as the rollouts were sampled."""

from __future__ import annotations

import copy

from rloop_lightning.model.policy import Policy
from rloop_lightning.types import SamplingParams

GENERATION_CONFIG = "generation_config.json"

# Settings that reshape transformers' distribution or its lengths, and that the rollouts were sampled without.
_WITHOUT = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "length_penalty",
    "max_length",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "penalty_alpha",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
    "top_h",
    "typical_p",
)


def generation_config(policy: Policy, sampling: SamplingParams) -> str:
    """The file's content: the base policy's generation config with the sampling of the rollouts.

    The EOS tokens and stop strings are all that end a rollout; with stop strings, `generate` needs `tokenizer=`.
    Penalties and filters of the base policy that rollouts were sampled without are left out; fields that don't change
    what is sampled stay.
    """
    config = copy.deepcopy(policy.model.generation_config)
    greedy = sampling.temperature == 0
    config.update(
        **dict.fromkeys(_WITHOUT),
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_k=None if greedy else sampling.top_k,  # without it, `generate` keeps the 50 most likely tokens
        top_p=None if greedy else sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(policy.stop_token_ids),
        stop_strings=list(sampling.stop) or None,
        _from_model_config=False,
    )
    return config.to_json_string()
