"""The tiny super-resolution model: a low-resolution reference, restored through cross-attention alone."""
