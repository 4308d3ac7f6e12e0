"""Models that can be run: one face for PyTorch and Keras, and tables over their live parameters."""
