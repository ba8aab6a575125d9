"""The parameters of embeddings, rankings, classification, pooling and tokenization, as `generation_parameters.py`."""

from __future__ import annotations

from collections.abc import Mapping

from protocol.openai.parameter_sets import ParameterSet
from protocol.refused_parameters import RefusedParameter, refuse

# The meaning of each parameter that some call implements, for the OpenAPI document and the docs.
MEANINGS: Mapping[str, str] = {
    "model": "The name of the model. If it is missing, the only model that serves the call answers.",
    "input": "A text, a list of token ids, or a list of either.",
    "task": "What the answer has of each text: `embed`, `classify`, `token_embed` or `token_classify`. The default is "
    "what the model is for.",
    "query": "The text that the documents are ranked by.",
    "documents": "The texts that are ranked. In scores, the second side.",
    "queries": "The first side: one text, or one for each text of the second side.",
    "items": "The second side.",
    "data_1": "The first side.",
    "data_2": "The second side.",
    "text_1": "The first side.",
    "text_2": "The second side.",
    "top_n": "The answer has this many of the best documents, with 0 all.",
    "return_documents": "The answer repeats the documents; this is the default.",
    "prompt": "The text.",
    "messages": "The chat, for models that generate.",
    "tokens": "The token ids.",
    "encoding_format": "`float`: lists of numbers; `base64`: their bytes in base64; `bytes`: the bytes of all texts, "
    "with the header `metadata` of at most 32 KiB; `bytes_only`: the same without it.",
    "embed_dtype": "The type of the bytes: `float32`, `float16`, `bfloat16`, `fp8_e4m3` or `fp8_e5m2`.",
    "endianness": "The order of the bytes: `little`, `big`, or `native`, which is little.",
    "dimensions": "Vectors are truncated to this many numbers, and normalized again if the model normalizes; 0: all "
    "numbers.",
    "output_dimension": "As `dimensions`.",
    "prompt_name": "The model's prompt with this name precedes the text, as in sentence-transformers.",
    "input_type": "The purpose of the text selects the prompt: `query`, `document`, `passage`, `search_query`, "
    "`search_document`, `classification`, `clustering`, or a prompt's name. It has no effect if the model has no such "
    "prompt.",
    "normalize": "As `use_activation`.",
    "normalized": "As `use_activation`.",
    "use_activation": "With false, classes and pairs have logits, not probabilities or scores. With true, vectors have "
    "length 1; false is a 400 error if the model's own modules do that.",
    "truncate_prompt_tokens": "Texts are truncated to this many tokens, or with -1 to as many as the model takes. This "
    "is the default, unless the operator says otherwise.",
    "truncation_side": "Truncation removes tokens on this side. The default is the tokenizer's side, usually right.",
    "max_tokens_per_query": "The query is truncated to its first tokens, this many, before query and document are "
    "truncated together; 0, or as many as the model takes, has no effect.",
    "max_tokens_per_doc": "Each document is truncated to its first tokens, as `max_tokens_per_query`.",
    "rank_fields": "The fields of documents that are objects, whose texts are joined by line breaks. The default is "
    "`text`.",
    "raw_scores": "Infinity's: with true, logits. The answer has Infinity's form, also with false.",
    "request_id": "The answer's id contains this.",
    "add_special_tokens": "The model's special tokens are added. The default is true for texts and false for chats.",
    "return_token_strs": "The answer has the tokens as the vocabulary writes them.",
    "tools": "Functions that the chat template writes into the prompt.",
    "add_generation_prompt": "The prompt ends with the beginning of the assistant's answer.",
    "continue_final_message": "The prompt ends with the unfinished last message.",
    "chat_template": "The server refuses this, because it does not trust templates in requests.",
    "chat_template_kwargs": "Variables of the chat template.",
}

# The user is not recorded, and there is no cache of prompts.
_NO_EFFECT = frozenset({"user", "cache_salt"})
_ONE_SIDE = (ParameterSet.EMBEDDINGS, ParameterSet.CLASSIFY, ParameterSet.POOLING)
_RANKINGS = (ParameterSet.RERANK, ParameterSet.SCORE)
_TOKENIZATION = (ParameterSet.TOKENIZE, ParameterSet.DETOKENIZE)
NO_EFFECT: Mapping[ParameterSet, frozenset[str]] = {
    **dict.fromkeys((*_ONE_SIDE, *_RANKINGS), _NO_EFFECT),
    # Cohere's: when a request is handled does not change its answer.
    ParameterSet.RERANK: _NO_EFFECT | {"priority"},
    **dict.fromkeys(_TOKENIZATION, frozenset()),
}


# What one call implements and another does not, so that it would change nothing there.
_FORM = {
    **refuse("encoding_format", neutral=("float",)),
    **refuse("embed_dtype", neutral=("float32",)),
    **refuse("endianness", neutral=("native", "little")),
}
_TASK = refuse("task")
_RAW_SCORES = refuse("raw_scores", advice="use use_activation")
_VECTORS = refuse("dimensions", "output_dimension", neutral=(0,)) | refuse("prompt_name", "input_type", "normalized")
_TOP = {
    **refuse("top_n", neutral=(0,)),
    **refuse("return_documents", neutral=(False,)),
    **refuse("rank_fields"),
}
_SIDES = ("queries", "items", "data_1", "data_2", "text_1", "text_2")
_PAIRS = {
    **refuse("query", "documents", *_SIDES, advice="pairs are for rerank and score"),
    **_TOP,
    **refuse("max_tokens_per_query", "max_tokens_per_doc", neutral=(0,)),
}
# What other servers have: older versions of vLLM, Jina, Voyage, NVIDIA, Text Embeddings Inference.
_OF_OTHERS = {
    **refuse("activation", "softmax", "truncation", neutral=(True,)),
    **refuse("truncate", neutral=(True, "END")),
    **refuse("candidate_labels", advice="call /pipeline/zero-shot-classification"),
    **refuse("embedding_type", "output_dtype", neutral=("float",)),
    **refuse("prompt", "instruction", advice="use prompt_name, for embeddings"),
    **refuse("late_chunking", neutral=(False,)),
    **refuse("pooling", advice="the model's files say how it pools"),
    **refuse("top_k", advice="use top_n, for rankings"),
    **refuse("return_text", "return_embeddings", neutral=(False,)),
}
# Images and sounds.
_OF_MEDIA = {"mm_processor_kwargs": RefusedParameter(({},))}
_OF_ALL = {
    **_OF_MEDIA,
    **_OF_OTHERS,
    "priority": RefusedParameter((0,)),
    # With an attention mask, padding changes nothing; models that need it are for images.
    "padding": RefusedParameter(("do_not_pad",)),
}
_OF_CHATS = {
    "chat_template": RefusedParameter(),
    "chat_template_kwargs": RefusedParameter(({},)),
    "media_io_kwargs": RefusedParameter(({},)),
}
# Of calls with one text each.
_OF_ONE_SIDE = {
    **_OF_ALL,
    **_OF_CHATS,
    **_PAIRS,
    "tools": RefusedParameter(),
    "add_generation_prompt": RefusedParameter((False,)),
    "continue_final_message": RefusedParameter((False,)),
    # Encoders have no chat templates.
    "messages": RefusedParameter(),
}
_OF_RANKINGS = {
    **_OF_ALL,
    **_FORM,
    **_TASK,
    **_VECTORS,
    **_OF_CHATS,
    **refuse("add_special_tokens", neutral=(True,)),
    **refuse("add_generation_prompt", "continue_final_message", neutral=(False,)),
    **refuse("messages", "tools", "input"),
    "instruction": RefusedParameter(),
}
# Removed from vLLM.
_NORMALIZE = refuse("normalize", advice="use use_activation")
REFUSED: Mapping[ParameterSet, Mapping[str, RefusedParameter]] = {
    # Infinity's.
    ParameterSet.EMBEDDINGS: {
        **_OF_ONE_SIDE,
        **_TASK,
        **_RAW_SCORES,
        "modality": RefusedParameter(("text",), on_vllm=False),
    },
    ParameterSet.RERANK: {
        **{name: refusal for name, refusal in _OF_RANKINGS.items() if name != "priority"},
        **_NORMALIZE,
        **refuse(*_SIDES),
        # Cohere's. A document is one chunk.
        "max_chunks_per_doc": RefusedParameter((1,), on_vllm=False),
        "relevant_spans": RefusedParameter(({"mode": "disabled"},), on_vllm=False),
    },
    ParameterSet.SCORE: {**_OF_RANKINGS, **_NORMALIZE, **_TOP, **_RAW_SCORES, **refuse("query")},
    ParameterSet.CLASSIFY: {**_OF_ONE_SIDE, **_NORMALIZE, **_FORM, **_TASK, **_VECTORS},
    # `data` is for plugins.
    ParameterSet.POOLING: {
        **_OF_ONE_SIDE,
        **_NORMALIZE,
        **_RAW_SCORES,
        **{name: refusal for name, refusal in _VECTORS.items() if name != "dimensions"},
        "data": RefusedParameter(),
    },
    ParameterSet.TOKENIZE: {**_OF_MEDIA, "media_io_kwargs": RefusedParameter(({},))},
    ParameterSet.DETOKENIZE: {},
}
