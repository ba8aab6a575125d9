"""The texts that the programs of clients embed and rank."""

from __future__ import annotations

TEXTS = ["Hello world", "Serve Hugging Face models"]
QUERY = "Where do pandas live?"
DOCUMENTS = ["Rome is in Italy.", "The panda lives in China, and eats bamboo all day."]
