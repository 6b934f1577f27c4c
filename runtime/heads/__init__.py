"""What a model computes besides text: embeddings and labels of given texts."""
