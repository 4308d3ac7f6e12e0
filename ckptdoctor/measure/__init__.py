"""One pass over a checkpoint's bytes: statistics of every tensor, and the stated checksums."""
