"""The gates of docs/reliability.md, and a program that tries them against real servers."""
