"""The model: settings, network, prediction, files, Hub, ONNX."""
