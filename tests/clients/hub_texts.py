"""What the clients of Hugging Face's servers ask."""

from __future__ import annotations

PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"
TEXTS = ["Sarah lives in Munich", "It rains in Rome", "Bread is made of flour"]
QUERY = "Where does Sarah live?"
