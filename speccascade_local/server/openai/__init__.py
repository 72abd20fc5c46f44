"""OpenAI's protocol: the fields of requests, and the objects of responses."""
