"""Several people's requests to loaded pairs: who is answered when, and over which protocol."""
