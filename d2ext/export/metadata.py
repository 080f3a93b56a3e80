"""Describe a trained model in the metadata of its ONNX file.

The keys, and the inputs and outputs of the graph, are documented in `d2ext.predict.onnx_info`, whose
`from_metadata` reads them: the package `predict`, which runs exported models, may not import this
one.
"""
