"""A model on disk: its manifest, the catalogue of names, the folder of installed models, and the bundled one.

Loading a model is in engine/, installing one in install/.
"""
