"""A live viewer: a capture in the browser, its photos put in and taken out while one looks."""
