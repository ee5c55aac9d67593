"""Policies as what other runtimes take: an ONNX graph, a C header, a look-up table. Each is compared with its source."""
