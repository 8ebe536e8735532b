"""Models as data: what a manifest says, and where models are kept."""
