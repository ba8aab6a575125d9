"""The texts of the document's examples, which all protocols share, and true answers to some of them.

The answers are those of the README's models.
"""

from __future__ import annotations

from runners.core.task import Task

SENTIMENTS = ["Hello, my dog is cute", "I am feeling sad"]
TOPICS = ["The new phone has a better camera.", "They won the cup final."]
CANDIDATE_LABELS = ["sports", "technology"]
PAIR = ["A man eats.", "Somebody has a meal."]
QUESTION_IN_CONTEXT = "Where does Maria live?"
CONTEXT = "Maria flew to Rome, but she lives in Munich."
PEOPLE = ["Have you met Sarah?", "Maria flew to Munich"]
# The label of each token of PEOPLE.
PEOPLE_LABELS = [[0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 2, 0]]
QUERY = "Where do pandas live?"
DOCUMENTS = ["Rome is in Italy.", "The panda lives in China."]
HELLO = "Hello world"
HELLO_IDS = [101, 7592, 2088, 102]
# The vector of HELLO begins with these numbers.
HELLO_VECTOR = [-0.034477208, 0.031023212, 0.0067349784]
HELLO_SUMMARY = f"A text; of the 384 numbers of its answer these are the first {len(HELLO_VECTOR)}"
# Options of a sparse embedding.
TWO_WEIGHTS = {"max_active_dims": 2}
# The usual mask token.
MASK = "[MASK]"
FRANCE = "The capital of France is"
QUESTION = "What is the capital of France?"
TRANSLATION = "translate English to German: Hello world"
GREEDY = {"max_tokens": 2, "temperature": 0}
# By task, a text to continue, and its continuation with GREEDY; None if it differs by model.
CONTINUED: dict[Task, tuple[str, str | None]] = {
    Task.TEXT_GENERATION: (FRANCE, " Paris."),
    Task.TEXT2TEXT_GENERATION: (TRANSLATION, None),
}


def masked_texts(mask: str) -> list[str]:
    """Two texts, each with one mask token; `paris` and `france` fill them."""
    return [f"{FRANCE} {mask}.", f"The capital of {mask} is paris."]
