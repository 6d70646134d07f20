"""Publication of a trained policy: its model card, and its upload to the Hugging Face hub."""
