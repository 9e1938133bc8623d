"""Who may send and who may ask: instances, keys, tokens, sessions."""
