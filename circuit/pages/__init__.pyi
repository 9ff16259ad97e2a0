from .build import Page as Page, circuit_page as circuit_page
from .notes import Notes as Notes
from .still import still_html as still_html
