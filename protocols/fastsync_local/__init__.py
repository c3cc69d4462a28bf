"""Local disks: the protocol behind plain paths and ``file://`` locations."""
