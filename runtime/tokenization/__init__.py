"""Text to ids, and ids to text as they come."""
