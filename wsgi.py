"""For `gunicorn wsgi:app` in a clone."""

from receiver.wsgi import app

__all__ = ["app"]
