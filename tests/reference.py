"""What a chat model answers in `transformers`, for the tests of clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Reference:
    """The model in `transformers`."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def chat(self, question: str, tokens: int) -> str:
        """The greedy answer to a question."""
        chat = [{"role": "user", "content": question}]
        return self._continue(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"], tokens)

    def complete(self, text: str, tokens: int) -> str:
        """The greedy continuation of a text."""
        return self._continue(self.tokenizer(text)["input_ids"], tokens)

    def score(self, context: str, continuation: str) -> tuple[float, bool]:
        """The log probability of a continuation, and whether it is the greedy one, as lm-eval counts them."""
        whole = self.tokenizer(context + continuation)["input_ids"]
        start = len(self.tokenizer(context)["input_ids"])
        with torch.inference_mode():
            logits = self.model(torch.tensor([whole])).logits[0, start - 1 : -1].log_softmax(-1)
        ids = torch.tensor(whole[start:])
        return logits.gather(1, ids[:, None]).sum().item(), bool((logits.argmax(-1) == ids).all())

    def _continue(self, ids: list[int], tokens: int) -> str:
        output = self.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens)
        text: str = self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        return text
