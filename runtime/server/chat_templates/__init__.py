"""Chat templates of checkpoints, rendered within limits of time and memory."""
