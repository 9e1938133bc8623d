"""For `gunicorn -c deploy/gunicorn.conf.py wsgi:app`: the settings of `receiver serve`."""

from receiver.serving import OPTIONS

globals().update(OPTIONS)
