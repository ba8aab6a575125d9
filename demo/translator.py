"""Make a tiny encoder-decoder that translates English digits into Spanish ones; it is trained from nothing in 20 s.

    python -m demo.translator FOLDER

No PyPI package carries a T5, and a model with random weights would answer nothing that can be read. This one knows ten
words of each language; it shows what an answer of the task text2text_generation looks like.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPANISH = ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve")
SPECIAL = ("<pad>", "</s>", "<unk>")
LONGEST = 6
STEPS, BATCH = 700, 32


def main(folder: Path) -> None:
    """Train the model and save it with its tokenizer and generation_config.json."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    tokenizer = create_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config.from_dict({**sizes, **tokens, "dropout_rate": 0.0}))
    train(model, tokenizer)
    model.generation_config = GenerationConfig(max_new_tokens=16, **tokens)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sys.stdout.write(f"{folder}\n")


def create_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word; texts end with </s>."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *ENGLISH, *SPANISH))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def train(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Learn from random sequences of up to six words."""
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        digits = [draw.choices(range(10), k=draw.randint(1, LONGEST)) for _ in range(BATCH)]
        inputs = tokenizer(
            [" ".join(ENGLISH[each] for each in row) for row in digits], padding=True, return_tensors="pt"
        )
        labels = tokenizer(
            [" ".join(SPANISH[each] for each in row) for row in digits], padding=True, return_tensors="pt"
        )
        targets = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        loss = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m demo.translator FOLDER")
    main(Path(sys.argv[1]))
