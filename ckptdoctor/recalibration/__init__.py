"""BatchNorm statistics recomputed from data, with the model at hand."""
