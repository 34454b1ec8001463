"""Paged attention: the kernel protocol, its plain-torch reference and the fast kernels."""
