"""The vendor's own API, passed on word for word, and what is read of it on its way."""
