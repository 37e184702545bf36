"""AlexNet from scratch: every kernel written by hand, once, for NVIDIA GPUs and for CPUs."""

__version__ = "0.1.0"
