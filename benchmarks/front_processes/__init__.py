"""Whether processes for HTTP and tokenizing before one model process win over several workers: see `__main__`."""
