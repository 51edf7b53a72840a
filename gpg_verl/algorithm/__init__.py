"""The paper (arXiv 2504.02546): pure functions on plain tensors and lists."""
