"""Property-based tests of every parser of bytes that strangers send.

`make test` runs them with the profile "ci", about a minute in all. `make fuzz MINUTES=60` runs them for an hour, in
rounds, and prints how many inputs each property was tried with. See properties.py for the bounds on each input.
"""
