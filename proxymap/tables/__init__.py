"""The table types of proxymap: one file each."""
