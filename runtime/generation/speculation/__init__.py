"""Speculative decoding: ids are proposed, and a step verifies several of them in one pass."""
