"""The decoding thread: rows of many requests step together."""
