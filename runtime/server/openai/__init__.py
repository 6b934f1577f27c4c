"""OpenAI's protocol: requests to rows, rows to replies."""
