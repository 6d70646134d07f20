"""Recipes as text: sections, specs, diagnostics and the JSON Schema. Never imports torch."""
