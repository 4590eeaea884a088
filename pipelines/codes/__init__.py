"""Code data sets: writing them shard by shard, and checking them."""
