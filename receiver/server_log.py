"""gunicorn's own lines, in the format of ours. Its name is in `serving.OPTIONS`."""

import sys
from typing import Any

from gunicorn import glogging

from receiver.errors import AnswerCut
from receiver.lib import logs


class ServerLog(glogging.Logger):  # type: ignore[misc]
    """gunicorn's logger; what it is told is one line, JSON unless on a terminal."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401 - gunicorn's
        """Do as gunicorn does, then write as we do."""
        super().setup(cfg)
        for each in (*self.error_log.handlers, *self.access_log.handlers):
            each.setFormatter(logs.formatter())

    def exception(self, msg: object, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - gunicorn's
        """Write an error with its traceback, but not one that has been told."""
        if not isinstance(sys.exception(), AnswerCut):
            super().exception(msg, *args, **kwargs)
