"""A server of action chunks, and its client."""
