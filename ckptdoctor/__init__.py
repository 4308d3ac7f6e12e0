"""The doctor for neural-network checkpoints."""
