"""rich is not deployed; httpx would import it for its command line, and that is 9 MB."""

raise ImportError("not deployed")
