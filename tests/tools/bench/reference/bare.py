"""A WSGI callable that reads the body and does nothing."""


def app(environ, start_response):
    """Answer 200."""
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]
