"""Asking web servers that are not trusted: what a URL may be, and clients whose exchanges end."""
