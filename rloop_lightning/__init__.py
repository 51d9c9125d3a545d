"""rloop-lightning: RLoop (arXiv 2511.04285) and the algorithms it is compared with, on PyTorch Lightning."""

__version__ = "0.1.0"
