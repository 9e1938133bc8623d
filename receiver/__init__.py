"""The receiving end of SAP Open Connectors bulk jobs: verify, keep, merge, tell."""

from importlib.metadata import version

__version__ = version("bulk-callback-receiver")
