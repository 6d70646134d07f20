"""Action heads: one per file, named like its `type` in a recipe."""
