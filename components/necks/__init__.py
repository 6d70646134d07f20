"""What features go through on their way to a head, one a file, named like the `type` of a recipe."""
