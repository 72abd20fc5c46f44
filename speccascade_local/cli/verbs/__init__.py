"""One module for each verb, by its name; its function ``run`` is the verb, and the docstring of that is its help."""
