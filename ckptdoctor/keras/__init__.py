"""The configuration that Keras stores beside its weights, read as data."""
