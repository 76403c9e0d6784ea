"""Reports: a run, or a search over rates, as one HTML page that needs no network: its charts are in it."""

from .page import Page
from .run_page import run_page
from .search_page import search_page

__all__ = ["Page", "run_page", "search_page"]
