"""For `gunicorn receiver.wsgi:app`; `receiver serve` brings its own settings."""

import os

import structlog

from receiver.app import create_app

app = create_app()

# gunicorn's own workers would answer 500 to every path that does not begin with it, callbacks too.
if prefix := os.environ.pop("SCRIPT_NAME", ""):
    what = "SCRIPT_NAME is ignored: no path of the receiver has a prefix"
    structlog.get_logger().warning(what, prefix=prefix, remedy="have the proxy take it off")
