"""What leaves the house: Spaces, ONNX; and what comes in: checkpoints of other systems."""
