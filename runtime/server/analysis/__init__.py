"""Endpoints that analyse texts and generate none: token ids, surprisal, embeddings, labels."""
