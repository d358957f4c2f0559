"""The explorer: a page with sliders, in the browser."""
