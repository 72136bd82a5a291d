"""Documents on disk: parquet rows with an origin, their ids, lists of those to be kept out."""
