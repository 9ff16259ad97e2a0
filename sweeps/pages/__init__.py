"""The study report, and circuits compared: data, templates, scripts."""
