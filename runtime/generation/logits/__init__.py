"""What happens to logits before an id is drawn from them, and the draw: penalties, bans, a caller's function."""
