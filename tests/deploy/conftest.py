"""The site that proxies are tested with."""

from sites import site, sites

__all__ = ["site", "sites"]
