"""Running models: ONNX Runtime, the tokenizer, batches, the cache, and Vision, which combines them.

Every adapter (SQL, HTTP, command line, llm) calls Vision. This folder contains no SQL and no HTTP.
"""
