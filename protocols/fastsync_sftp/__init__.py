"""Servers reached through SSH: the protocol behind ``sftp://`` and ``ssh://`` locations."""
