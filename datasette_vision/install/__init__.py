"""Bringing a model to disk: from the hub, a folder or a file; recognising what it is; proving that it answers.

PyTorch is not needed here: exporting weights is bake/, which whoever installs hands over.
"""
