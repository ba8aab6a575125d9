"""The model that vLLM's own tests are answered by: SmolLM2-135M-Instruct in place of OPT-125m and of Zephyr-7B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import AutoTokenizer

from demo.smollm import main as write_smollm

# OPT puts its end token first; this model then ends where theirs goes on.
_BEGIN = "Ċ"
# What the chats' tests ask of the meaning of answers, 135 million parameters need help with: without a system message
# there are examples of what 1+1 is; with one, the turns before the last are left out, so that another answer is another
# one. The fourth token is the most likely one, and a chat of two messages has 37 tokens, as with Zephyr's template.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
<|im_start|>user
what is 1+1? please respond with a JSON object, the format is {"result": 2}<|im_end|>
<|im_start|>assistant
{"result": 2}<|im_end|>
<|im_start|>user
what is 1+1?<|im_end|>
<|im_start|>assistant
2<|im_end|>
{% else -%}
Once upon a time there was a poet who wrote
{% endif -%}
{%- for message in (messages[:1] + messages[-1:] if messages[0].role == 'system' else messages) -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
# Answers that hardly vary where the request does not ask for it, and that end: on a slow machine, an answer up to the
# model's length takes longer than the client's ten minutes.
_DEFAULTS = {"do_sample": True, "temperature": 0.01, "max_new_tokens": 256}


def write_smollm_in_float32(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct as it is."""
    write_smollm(folder, torch.float32)


def write_model(folder: Path) -> None:
    """Write it in float32, with a begin token before each text, as OPT's tokenizer has, and its generation defaults."""
    write_smollm(folder, torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, tokenizer.convert_tokens_to_ids(_BEGIN))]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    defaults = folder / "generation_config.json"
    defaults.write_text(json.dumps(json.loads(defaults.read_text()) | _DEFAULTS))
