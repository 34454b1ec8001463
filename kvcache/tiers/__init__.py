"""The lower tiers' bytes: host memory, disk, and the mover between them and the device. CacheManager orders."""
