"""What the model makes of a given text."""
