"""Programs of others against a real server, and the page of what was seen. Each has an environment of its own."""
