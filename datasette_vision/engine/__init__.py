"""Running models: ONNX Runtime, the tokenizer, batches, the cache, and Vision, which puts them together.

Every adapter (SQL, HTTP, command line, llm) calls Vision. No SQL and no HTTP here.
"""
