"""The model folder: its files, its model card, and how it is published."""
