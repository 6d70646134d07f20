"""The Triton programs behind the operators; importing a module here imports triton."""
