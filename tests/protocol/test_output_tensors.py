from __future__ import annotations

import numpy as np

from protocol.output_tensors import build_tensor
from runners.core.predictions import MAIN, TRUNCATED_TOKENS, Numbers, Prediction


def test_a_number_for_each_text_has_no_places_for_the_tokens_of_the_client() -> None:
    predictions = [
        Prediction({MAIN: Numbers(np.zeros(3, np.float32)), TRUNCATED_TOKENS: np.array(left_out)})
        for left_out in (0, 7)
    ]
    tensor = build_tensor("truncated_tokens", predictions, columns=4)
    assert (tensor.shape, tensor.datatype, [*tensor.flat]) == ([2], "INT64", [0, 7])
