"""Generation by vLLM: its engine, and its own OpenAI layer as an ASGI application, in this process.

vLLM's entry points change between releases; only this package knows them (0.32, 0.31). Importing vLLM takes seconds and
hundreds of MB, so it is imported only when a generator is loaded.
"""
