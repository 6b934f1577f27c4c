"""What the processor offers: threads, instructions, large pages."""
