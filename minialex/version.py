"""The version, which config.json and --version tell."""

__version__ = "0.2.0"
