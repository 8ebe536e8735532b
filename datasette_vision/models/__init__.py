"""A model on disk: its manifest, the catalogue of names, the folder of installed models, and the bundled one.

Loading a model is engine/, bringing one here is install/.
"""
