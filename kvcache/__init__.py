"""Pages: their layout, the pool, tables, the cache manager and paged attention. Leaves formats to quant."""
