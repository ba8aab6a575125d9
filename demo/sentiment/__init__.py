"""A sentiment model: what of it differs from the encoder of a PyPI package, and what makes it whole."""
