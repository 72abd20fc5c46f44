"""What fits, how fast it is here, which models pair, and what is wrong."""
