"""Ready-made recipes and the bundled demonstrations."""
