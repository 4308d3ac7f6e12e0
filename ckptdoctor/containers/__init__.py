"""General containers of bytes: zip archives, pickles, HDF5 files; nothing about checkpoints."""
