"""Where bytes lie: places, and the store that is built on them."""
