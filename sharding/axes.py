"""Names of the mesh's axes."""

DATA = "data"
"""Replicas: each has the whole model."""

STAGE = "stage"
"""Runs of layers, one after another."""

TENSOR = "tensor"
"""Slices of every layer's matrices, of the vocabulary and of the KV heads."""

ALL = (DATA, STAGE, TENSOR)
