"""One TOML file a size: what its recipe adds to the defaults in recipe.py and model/config.py."""
