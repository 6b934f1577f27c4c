"""What many prompts begin with, computed once, kept in memory or in a file."""
