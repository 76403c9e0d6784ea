"""One module for each kind of reference page. Each reads the code and returns Markdown; none writes a file."""
