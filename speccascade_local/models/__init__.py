"""Which files: models.yaml, this disk, the hub, and what the header of a GGUF file says. Loads no model."""
