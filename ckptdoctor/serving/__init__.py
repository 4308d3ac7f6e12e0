"""Checks where a checkpoint is about to be served: preflight, its cache, and its homes in servers."""
