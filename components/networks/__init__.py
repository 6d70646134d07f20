"""Networks of heads that denoise, one a file, named like the `type` of a recipe."""
