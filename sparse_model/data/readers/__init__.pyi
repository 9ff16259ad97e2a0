from .python_files import read_python as read_python
from .text_files import read_texts as read_texts
