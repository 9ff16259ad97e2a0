"""A circuit's page: one HTML file that opens offline. Python prepares the data, the page only draws them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
