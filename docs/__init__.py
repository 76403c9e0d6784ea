"""The documentation: pages for readers, and the program that makes the reference pages from the code."""
