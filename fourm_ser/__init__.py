"""Experiments in multi-modal speech emotion recognition: encoders, fusions, losses and stages as one grid."""

import os

# cuBLAS reads it once, at the first product on a GPU: without it that product and all later ones may differ by run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__version__ = "0.1.0"

# Hz, of every waveform that an encoder is given: what all the pretrained ones were trained on.
SAMPLE_RATE = 16_000
