"""Families of vision-language models: how each sees images, places tokens and reads them."""
