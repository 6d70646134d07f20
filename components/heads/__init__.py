"""Action heads, one a file, named like the `type` of a recipe."""
