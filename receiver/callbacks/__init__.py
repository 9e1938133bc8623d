"""From an HTTP delivery to a stored event: verify, parse, write, acknowledge."""
