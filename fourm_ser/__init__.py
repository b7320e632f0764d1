"""Experiments in multi-modal speech emotion recognition: encoders, fusions, losses and stages as one grid."""

__version__ = "0.1.0"
