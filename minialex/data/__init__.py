"""Pictures on disk made into batches: folders, decoding, the loader, the built-in set."""
