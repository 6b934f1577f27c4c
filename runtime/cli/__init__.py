"""The command gpt2-edge."""
