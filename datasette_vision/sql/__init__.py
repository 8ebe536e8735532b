"""The SQL functions: one table that describes them, their implementations, and their registration on a connection.

A function is a row in table.py and a method of the same name in functions.py.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return register(), which older code imports from here, without loading its module earlier."""
    if name != "register":
        raise AttributeError(name)
    from datasette_vision.sql.registration import register

    return register
