"""Installs models from the hub, a folder or a file: recognises what a source holds, and checks that it works.

PyTorch is not needed here: exporting weights is in bake/, and is passed in by the caller.
"""
