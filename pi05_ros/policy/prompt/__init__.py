"""Prompt text and tokenizers."""
