"""For `gunicorn receiver.wsgi:app`; `receiver serve` brings its own settings."""

from receiver.app import create_app

app = create_app()
