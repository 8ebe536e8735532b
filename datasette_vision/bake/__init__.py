"""Turns PyTorch models into ONNX: exports, fuses and quantises them, and compares them with the original. Needs the
extra `bake`.

Other folders import only bake.py. Nothing that serves imports this folder.
"""
