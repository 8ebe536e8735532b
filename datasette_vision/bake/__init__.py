"""PyTorch models to ONNX: exported, fused, quantised, and proved against the original. Needs the extra `bake`.

bake.py is the only module that others import. Nothing that serves imports anything here.
"""
