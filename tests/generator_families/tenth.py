"""The families that run with all other tests: every way to batch, what scales positions, and what is most used."""

from __future__ import annotations

TENTH = (
    "bart-seq2seq", "bigbird_pegasus-seq2seq", "bloom-causal", "gemma3_text-causal", "gpt2-causal", "gpt_oss-causal",
    "jamba-causal", "llama-causal-dynamic", "llama-causal-longrope", "llama-causal-yarn", "llama4_text-causal",
    "m2m_100-seq2seq", "mamba-causal", "mistral-causal", "nllb-moe-seq2seq", "opt-causal", "pegasus_x-seq2seq",
    "phi3-causal-longrope", "phimoe-causal-longrope", "qwen2-causal-windows", "qwen3_next-causal",
    "switch_transformers-seq2seq", "t5-seq2seq",
)  # fmt: skip
