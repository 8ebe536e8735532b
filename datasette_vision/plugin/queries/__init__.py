"""Limits for SQL from untrusted clients: permission, time, threads and memory of each query."""
