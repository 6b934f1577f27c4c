"""Structured output: only what a grammar allows is written."""
