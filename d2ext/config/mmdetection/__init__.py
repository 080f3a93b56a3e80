"""Import of MMDetection's configs: read, translate, and write a LazyConfig and a table."""
