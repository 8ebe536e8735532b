"""The demo database: every emoji with its image, its names and its embedding."""
