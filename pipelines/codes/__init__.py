"""Code data sets: writes them shard by shard and checks them."""
