"""The receiving end of SAP Open Connectors bulk jobs: verify, store, merge, notify."""


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: no command's start waits for that."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version

    return version("bulk-callback-receiver")
