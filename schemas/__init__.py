"""What a recipe may say: sections, tensor specs, diagnostics and the JSON Schema. Never imports torch."""
