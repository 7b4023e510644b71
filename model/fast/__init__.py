"""The compiled twin of the tokenizer: kernels that numba turns into machine code."""
