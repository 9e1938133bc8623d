"""HTTP requests to URLs that others chose."""
