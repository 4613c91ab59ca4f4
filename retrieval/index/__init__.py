"""The index folder: its builder, its updates, and the FAISS index in it."""
