"""How likely a model finds given texts: scores, perplexity, surprisal, evaluations."""
