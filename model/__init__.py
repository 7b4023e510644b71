"""The language model, from bytes to samples. Reading order: see the README's learning path."""
