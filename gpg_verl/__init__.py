"""Group Policy Gradient (GPG, arXiv 2504.02546) for veRL."""

__version__ = "0.1.0"
