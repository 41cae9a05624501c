"""How an erasure compares with the truth: one noun a file, every figure per item first, and only then a mean over items."""
