"""OpenAI's protocol: what requests mean, and how answers are written. Opens no socket."""
