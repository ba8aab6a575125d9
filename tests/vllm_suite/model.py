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
# Their chat of two messages has 37 tokens, as Zephyr's template makes of it. Without a system message come examples, by
# which 135 million parameters know what 1+1 is.
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
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}{% if message.role == 'system' %} who writes a poem of ten lines about each question.{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


def write_model(folder: Path) -> None:
    """Write it in float32, with a begin token before each text, as OPT's tokenizer has.

    Its default temperature is so low that what the tests ask of the meaning of an answer holds each time.
    """
    write_smollm(folder, torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, tokenizer.convert_tokens_to_ids(_BEGIN))]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    defaults = folder / "generation_config.json"
    defaults.write_text(json.dumps(json.loads(defaults.read_text()) | {"do_sample": True, "temperature": 0.01}))
