"""From the bytes of a file to upright RGB pixels, and to the array that an image tower takes.

formats.py has the table of file formats. This folder knows nothing about models, tables or requests.
"""
