"""Both directions of the llm tool: our models for `llm embed`, and its models for llm_embed() in SQL.

Needs the extra `llm`.
"""
