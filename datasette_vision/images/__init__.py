"""From the bytes of a file to upright RGB pixels, and to the array an image tower takes.

formats.py is the one table of file formats. Nothing here knows models, tables or requests.
"""
