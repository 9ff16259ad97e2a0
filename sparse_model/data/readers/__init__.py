"""Documents out of files: Python sources that are installed here, texts behind any URI."""
