"""Every window and chunk in a config of `transformers` is read, or is listed here with the reason why not."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from runners.modeling.attention import read_attention_windows, read_chunks

# What a number of tokens that bounds attention, or a chunk of a text, is called in configs.
LIKE_A_WINDOW = re.compile("window|local|chunk|block|sliding|radius|landmark|index_top")
LAYERS = "says which layers, or how many"
VISION = "is for images or sound"
WIDTHS = "is a width of layers"
NOT_READ = {
    **dict.fromkeys(
        (
            "block_repeats", "block_sizes", "block_types", "layers_block_type", "local_layer_ids", "max_window_layers",
            "mtp_layers_block_type", "mtp_local_layer_ids", "num_blocks", "num_mel_attn_blocks", "num_mem_blocks", "num_self_attends_per_block",
            "prefix_dense_sliding_window_pattern", "sliding_window_pattern", "num_sliding_attention_heads",
        ),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            "conf_attention_chunk_size", "seconds_per_chunk", "resblock_dilation_sizes", "resblock_kernel_sizes",
            "speech_encoder_chunk_size", "speech_encoder_left_chunk_num",
        ),
        VISION,
    ),
    **dict.fromkeys(("block_ffn_dim_multiplier", "block_multiple_of"), WIDTHS),
    **dict.fromkeys(
        ("chunk_size_feed_forward", "chunk_size_lm_head"), "divides rows of a layer that do not see each other"
    ),
    **dict.fromkeys(
        (
            "local_num_chunks_after", "local_num_chunks_before", "lsh_num_chunks_after", "lsh_num_chunks_before",
            "index_local_blocks", "index_topk_blocks", "num_random_blocks",
        ),
        "counts chunks whose size is read",
    ),
    **dict.fromkeys(
        ("block_per_row", "initial_prior_diagonal_n_blocks", "initial_prior_first_n_blocks"),
        "is of MRA, whose attention is 0 without a kernel from the hub",
    ),
    "num_landmarks": "is of Nyströmformer, which runs texts of one length only if it leaves tokens out",
    "num_local_experts": "counts experts",
    "local_attention_probs_dropout_prob": "is for training",
    "max_inference_chunksize": "is longer than all probe texts; xLSTM's chunk_size is read",
}  # fmt: skip


def text_configs() -> Iterator[type[PretrainedConfig]]:
    """The classes of configs of models that read text."""
    for model_type in sorted(CONFIG_MAPPING.keys()):
        config_class = CONFIG_MAPPING[model_type]
        text_class = (getattr(config_class, "sub_configs", None) or {}).get("text_config")
        for each in (config_class, text_class):
            if isinstance(each, type) and issubclass(each, PretrainedConfig) and dataclasses.is_dataclass(each):
                names = {field.name for field in dataclasses.fields(each)}
                if "vocab_size" in names or model_type in TOKENIZER_MAPPING_NAMES:
                    yield each


@pytest.fixture(scope="module")
def numbers() -> dict[str, type[PretrainedConfig]]:
    """The fields that look like windows and may have numbers, each with one class that has it."""
    found: defaultdict[str, type[PretrainedConfig]] = defaultdict()
    for config_class in text_configs():
        for field in dataclasses.fields(config_class):
            types = str(field.type)
            if LIKE_A_WINDOW.search(field.name) and re.search(r"\bint\b", types):
                found.setdefault(field.name, config_class)
    return dict(found)


def test_every_window_is_read(numbers: dict[str, type[PretrainedConfig]]) -> None:
    assert len(numbers) > 25, "the fields of configs are found"
    unread = {
        name: config_class.__name__
        for name, config_class in numbers.items()
        if name not in NOT_READ and read(config_class, name, 97) == read(config_class, name, 98)
    }
    assert not unread


def read(config_class: type[PretrainedConfig], name: str, number: int) -> list[int]:
    """What is read of a config with this number; most others have their defaults."""
    config = config_class.__new__(config_class)
    vars(config)[name] = number
    return [*read_attention_windows(config), *read_chunks(config)]


def test_what_is_not_read_exists() -> None:
    names = {field.name for config_class in text_configs() for field in dataclasses.fields(config_class)}
    assert {*NOT_READ} <= names
