"""For `gunicorn -c deploy/gunicorn.conf.py wsgi:app`: the settings of `receiver serve`."""

from receiver.server import OPTIONS

globals().update(OPTIONS)
