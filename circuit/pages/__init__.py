"""A circuit's page: one HTML file that opens offline. Python prepares the data, the page only draws them."""

from circuit.pages.build import Page, circuit_page
from circuit.pages.notes import Notes
from circuit.pages.still import still_html

__all__ = ["Notes", "Page", "circuit_page", "still_html"]
