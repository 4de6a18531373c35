"""The entropy-minimization trainer and the vocabulary every other package shares.

``em_core.config`` and ``em_core.journal`` never import torch; the trainer does, on the node that trains.
"""
