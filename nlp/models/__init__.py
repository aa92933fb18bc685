"""Keras layers and networks for text; nothing here reads a file."""
