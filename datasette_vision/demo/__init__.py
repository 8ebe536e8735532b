"""The demo database: every emoji with its picture, its names and its embedding."""
