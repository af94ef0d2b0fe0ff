"""The page of ``sashimi-demo``: generate, continue and compare sounds in a browser."""
