"""The model folder: its files, its card, how it is published."""
