"""ONNX graphs of the stages: export, structural checks, files with hashes."""
