"""The tokenizer of a model folder: tokenizer.json is checked and opened, and every call into tokenizers is guarded."""
