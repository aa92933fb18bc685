"""Keras layers and networks for vision; nothing here reads a file or sees a config."""
