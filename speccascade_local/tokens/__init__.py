"""From messages to token ids, from logits to a token, and from tokens to text."""
